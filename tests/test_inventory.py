"""Every mistake at once, each with its line; what is right becomes values."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab.errors import InventoryError
from homelab.inventory import Inventory, load, slug

GOOD = """\
cluster: home
gateway: {node: a}
nodes:
  a: {host: 10.0.0.1}
  b: {host: b.local, reserve: 1 GiB, runtime: docker}
models:
  m:
    engine: llamacpp
    source: /models/m.gguf
    context: 32k
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(InventoryError) as e:
        load(text, "inventory.yml")
    assert e.value.exit_code == 2
    return list(e.value.mistakes)


def test_a_good_inventory_becomes_values() -> None:
    inventory = load(GOOD, "inventory.yml")
    model = inventory.models["m"]
    assert model.context is not None
    assert (model.context.min, model.context.max) == (32768, 32768)
    assert [(v.engine, v.source) for v in model.variants] == [("llamacpp", "/models/m.gguf")]
    assert inventory.nodes["b"].reserve == 1024**3
    assert not inventory.is_local


def test_all_mistakes_are_reported_at_once_with_line_path_and_a_suggestion() -> None:
    text = (
        GOOD.replace("host: 10.0.0.1", "hots: 10.0.0.1")
        .replace("engine: llamacpp", "engine: llamacp")
        .replace("{node: a}", "{node: c}")
    )
    found = mistakes(text + "    concurrency: many\n")
    assert "inventory.yml:2: gateway.node: no node `c`" in found[0]
    found = found[1:]
    assert found[0].startswith("inventory.yml:4: nodes.a.host: missing")
    assert found[1] == "inventory.yml:4: nodes.a.hots: unknown key, did you mean `host`?"
    assert found[2].startswith(
        "inventory.yml:8: models.m.engine: no engine `llamacp`, did you mean `llamacpp`?"
    )
    assert found[3].startswith("inventory.yml:11: models.m.concurrency:")
    assert "'many'" in found[3]


def test_what_is_wrong_between_sound_entries_is_said_with_the_rest() -> None:
    text = (
        GOOD
        + "    node: c\n  x: {engine: vllm, source: /a.gguf}\n  y: {engine: vllm}\nfallbacks: {m: [y, z]}\n"
    )
    assert [line.partition(": ")[2] for line in mistakes(text)] == [
        "models.m.node: no node `c`",
        "models.x.variants[0].source: vllm does not read gguf files",
        "models.y: `source` missing: a model needs `engine` and `source`, or `variants`",
        "fallbacks.m: no model `z`",
    ]


def test_references_are_checked_once_the_entries_are_right() -> None:
    text = (
        GOOD.replace("{node: a}", "{node: aa}")
        + "    node: bb\nfallbacks: {m: [n]}\ncloud: {m: {model: openai/y}}\n"
    )
    assert mistakes(text) == [
        "inventory.yml:2: gateway.node: no node `aa`, did you mean `a`?",
        "inventory.yml:11: models.m.node: no node `bb`, did you mean `b`?",
        "inventory.yml:12: fallbacks.m: no model `n`",
        "inventory.yml:13: cloud.m: is a model of the house too: names are unique",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("  b: {host: b.local, reserve: 1 GiB, runtime: docker}", "  a: {host: b.local}"),
            "inventory.yml:5: nodes.a: written twice",
        ),
        (("reserve: 1 GiB", "reserve: much"), "nodes.b.reserve"),
        (("runtime: docker", "runtime: dokcer"), "did you mean `docker`?"),
        (("context: 32k", "context: {min: 4096, max: 1024}"), "min 4096 is larger than max 1024"),
        (("context: 32k", "gpu: 0"), "`gpu` needs `node`"),
        (("    source: /models/m.gguf\n", ""), "`source` missing"),
        (("source: /models/m.gguf", "source: m.gguf"), "is no model source"),
        (("engine: llamacpp", "engine: vllm"), "vllm does not read gguf files"),
        (("context: 32k", "variants: [{engine: llamacpp, source: /x.gguf}]"), "beside `variants`"),
        (("context: 32k", "variants: []"), "`variants` is empty"),
        (("cluster: home", "cluster: My Home"), "inventory.yml:1: cluster:"),
        (("gateway: {node: a}", "gateway: {node: a, port: 70000}"), "gateway.port"),
        (("gateway: {node: a}", "gateway: {node: a, prot: 4000}"), "did you mean `port`?"),
        (("    context: 32k", "    port: 4000\n    node: a"), "port 4000 is the gateway's"),
        (("    context: 32k", "    args: {'a b': 1}"), "is not the name of an engine argument"),
        (("cluster: home", "images: {vlm: x}"), "did you mean `vllm`?"),
        (("cluster: home", "cloud: {c: {model: a/b, api_key: sk-abc}}"), "no secret belongs into this file"),
        (("host: 10.0.0.1", "host: localhost"), "give the `address`"),
        (("cluster: home", "cluster: [home"), "inventory.yml:"),
    ],
)
def test_each_kind_of_mistake_says_what_is_wrong(change: tuple[str, str], expected: str) -> None:
    assert change[0] in GOOD
    found = mistakes(GOOD.replace(*change))
    assert any(expected in line for line in found), found


@pytest.mark.parametrize("bad", ["a$b", "a'b", 'a"b', "a\nb", "a b", "a`b", "a\x07b", ""])
@pytest.mark.parametrize("where", ["host", "user", "address", "model", "node"])
def test_names_that_would_break_a_command_line_are_refused(bad: str, where: str) -> None:
    import json

    quoted = json.dumps(bad)
    text = {
        "model": GOOD.replace("  m:\n", f"  {quoted}:\n"),
        "node": GOOD.replace("  b: {", f"  {quoted}: {{"),
    }.get(
        where,
        GOOD.replace("host: b.local", f"{where}: {quoted}, {'host: x' if where != 'host' else 'port: 22'}"),
    )
    assert mistakes(text)


def test_models_of_one_service_name_are_refused() -> None:
    text = GOOD + "  M:\n    engine: llamacpp\n    source: /m.gguf\n"
    assert any("same service name" in line for line in mistakes(text))


def test_the_shape_in_the_documentation_is_accepted() -> None:
    inventory = load(Path("inventory.example.yml").read_text(), "inventory.example.yml")
    assert set(inventory.nodes) == {"workstation", "server", "laptop", "pi"}
    assert inventory.fallbacks == {"qwen3-30b": ("qwen3-4b",)}


def test_environment_variables_are_named_with_the_entry_that_needs_them() -> None:
    text = GOOD + "cloud: {c: {model: anthropic/x, api_key: env:KEY}}\nhub: {token: env:HF_TOKEN}\n"
    assert load(text, "i").variables() == {"KEY": "cloud.c.api_key", "HF_TOKEN": "hub.token"}


@given(st.text(max_size=200))
def test_no_text_makes_anything_but_an_inventory_or_our_error(text: str) -> None:
    try:
        assert isinstance(load(text, "i"), Inventory)
    except InventoryError as e:
        assert e.mistakes


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "nodes",
                        "models",
                        "gateway",
                        "node",
                        "host",
                        "a",
                        "engine",
                        "source",
                        "variants",
                        "context",
                    ]
                ),
                x,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_document_makes_anything_but_an_inventory_or_our_error(document: object) -> None:
    import yaml

    try:
        load(yaml.safe_dump(document), "i")
    except InventoryError as e:
        assert all(line.startswith("i:") for line in e.mistakes)


@pytest.mark.parametrize(("name", "expected"), [("Qwen3-30B", "qwen3-30b"), ("a.b_c", "a-b-c")])
def test_a_service_is_named_as_compose_accepts(name: str, expected: str) -> None:
    assert slug(name) == expected


def _doubled(levels: int, last: str) -> str:
    """Nine times the one before, by aliases."""
    names = [f"n{i}" for i in range(levels)]
    lines = [f"{names[0]}: &{names[0]} [{', '.join(['x'] * 9)}]"]
    lines += [f"{b}: &{b} {last % ', '.join([f'*{a}'] * 9)}" for a, b in pairwise(names)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("2024-13-45", "`2024-13-45` is no date"),
        ("2001-01-01 99:99:99", "is no date"),
        ("2001-01-01 00:00:00 +99:99", "is no date"),
        ("0b_", "`0b_` is no number"),
        ("0x_", "`0x_` is no number"),
        ("9" * 5000, "is no number"),
        ("0x" + "f" * 5000, "is no number"),
        ("!!int x", "`x` is no number"),
        ("!!int ''", "is no number"),
        ("!!bool x", "`x` is no bool"),
        ("!!timestamp x", "`x` is no date"),
        ("!!float ''", "is no float"),
        ('"\\ud800"', "half of a character"),
    ],
)
def test_a_value_that_yaml_cannot_make_anything_of_is_a_mistake_with_its_line(value: str, said: str) -> None:
    [line] = mistakes(f"{GOOD}    replicas: {value}\n")
    assert line.startswith("inventory.yml:11: ") and said in line
    assert len(line) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster: &a [*a]\n", "inventory.yml:1: `*a` is inside what it stands for"),
        ("&a {gateway: {node: x}, nodes: *a}\n", "inventory.yml:1: `*a` is inside what it stands for"),
        ("cluster: " + "[" * 5000, "inventory.yml:1: more than 30 levels deep"),
        ("cluster: " + "{a: " * 5000, "inventory.yml:1: more than 30 levels deep"),
        ("- " * 5000, "inventory.yml:1: more than 30 levels deep"),
        ("cluster:\n" + "".join(" " * i + "a:\n" for i in range(1, 2000)), "more than 30 levels deep"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)),
            "more than 30 levels deep",
        ),
        (_doubled(9, "[%s]"), "stands for more than 20000 entries"),
        ("n0: {<<: &x {a: 1}}\n" + _doubled(9, "[%s]"), "stands for more than 20000 entries"),
        (_doubled(9, "{<<: [%s]}"), "stands for more than 20000 entries"),
    ],
)
def test_a_document_that_unfolds_without_end_is_a_mistake_with_its_line(text: str, said: str) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        [line] = mistakes(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said in line
    assert peak < 64 * 2**20


def test_an_alias_may_stand_for_what_is_written_once() -> None:
    text = GOOD.replace("a: {host: 10.0.0.1}", "a: &a {host: 10.0.0.1}").replace(
        "b: {host: b.local,", "b: {<<: *a, host: b.local,"
    )
    assert load(text, "i").nodes["b"].host == "b.local"


def test_a_mistake_shows_no_more_of_a_value_than_a_line_holds() -> None:
    [line] = mistakes(GOOD.replace("32k", "x" * 100_000))
    assert len(line) < 400


@pytest.mark.parametrize("size", ["-1", "9" * 400, "9" * 5000, "1e999 GiB", "9e15 TiB", "2048 TiB"])
def test_a_size_that_no_memory_has_is_a_mistake(size: str) -> None:
    [line] = mistakes(GOOD.replace("reserve: 1 GiB", f"reserve: '{size}'"))
    assert line.startswith("inventory.yml:5: nodes.b.reserve: ")
    assert len(line) < 400


@pytest.mark.parametrize(
    "args",
    [
        ("llamacpp", "parallel", "0"),
        ("llamacpp", "-np", "0"),
        ("llamacpp", "ubatch-size", "'0'"),
        ("llamacpp", "batch-size", "-1"),
        ("vllm", "tp", "0"),
        ("vllm", "max-num-seqs", "0"),
        ("vllm", "block-size", "0"),
    ],
)
def test_a_count_of_nothing_is_a_mistake(args: tuple[str, str, str]) -> None:
    engine, name, value = args
    source = "/m.gguf" if engine == "llamacpp" else "a/b"
    text = f"gateway: {{node: a}}\nnodes: {{a: {{host: h}}}}\nmodels:\n  m:\n    engine: {engine}\n"
    [line] = mistakes(f"{text}    source: {source}\n    args: {{{name}: {value}}}\n")
    assert line.startswith("inventory.yml:7: models.m.args: ")
    assert f"`{name}` is at least 1, not" in line


@pytest.mark.parametrize(
    ("engine", "name", "instead"),
    [
        ("llamacpp", "host", "its `address`"),
        ("llamacpp", "--host", "its `address`"),
        ("llamacpp", "port", "`port` beside `args`"),
        ("llamacpp", "api_key", "a key of its own"),
        ("llamacpp", "api-key-file", "a key of its own"),
        ("llamacpp", "a", "the model's name"),
        ("llamacpp", "-m", "as `source`"),
        ("llamacpp", "hf", "as `source`"),
        ("llamacpp", "ssl-cert-file", "plain HTTP"),
        ("llamacpp", "api-prefix", "no prefix"),
        ("vllm", "host", "its `address`"),
        ("vllm", "port", "`port` beside `args`"),
        ("vllm", "api-key", "a key of its own"),
        ("vllm", "api-k", "a key of its own"),  # argparse takes a beginning for the whole
        ("vllm", "served_model_name", "the model's name"),
        ("vllm", "ssl-keyfile", "plain HTTP"),
        ("vllm", "config", "as `args`"),
    ],
)
def test_an_argument_that_would_break_a_promise_is_refused_with_what_to_write(
    engine: str, name: str, instead: str
) -> None:
    source = "/m.gguf" if engine == "llamacpp" else "a/b"
    text = f"gateway: {{node: a}}\nnodes: {{a: {{host: h}}}}\nmodels:\n  m:\n    engine: {engine}\n"
    [line] = mistakes(f"{text}    source: {source}\n    args: {{{name}: 0.0.0.0}}\n")
    assert line.startswith(f"inventory.yml:7: models.m.args: `{name}` is not yours to set: ")
    assert instead in line


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0.0.0.0", "stands for all interfaces"),
        ("'::'", "stands for all interfaces"),
        ("'::0'", "stands for all interfaces"),
        ("'::ffff:0.0.0.0'", "stands for all interfaces"),
        ("169.254.7.7", "is of this link only"),
        ("'fe80::1'", "is of this link only"),
        ("'fe80::1%eth0'", "names a zone"),
        ("224.0.0.1", "is nobody's own"),
        ("255.255.255.255", "is nobody's own"),
        ("'[fd00::1]'", "is neither an address nor a name"),
        ("192.168.1.10/24", "is neither an address nor a name"),
        ("192.168.1.300", "is neither an address nor a name"),
        ("http://nas", "is neither an address nor a name"),
        ("'*'", "is neither an address nor a name"),
    ],
)
def test_an_address_at_which_nobody_can_be_reached_alone_is_a_mistake(address: str, said: str) -> None:
    [line] = mistakes(GOOD.replace("host: b.local", f"host: b.local, address: {address}"))
    assert line.startswith("inventory.yml:5: nodes.b.address: ")
    assert said in line and "192.168.1.10" in line  # what to write


@pytest.mark.parametrize(
    "address", ["192.168.1.10", "'fd00::10'", "127.0.0.1", "nas", "nas.local", "nas_2.lan."]
)
def test_an_address_of_one_machine_is_taken(address: str) -> None:
    assert load(GOOD.replace("host: b.local", f"host: b.local, address: {address}"), "i")


@pytest.mark.parametrize("written", ["0", "17", "-1", "true", "1.5", "many", "[2]"])
def test_a_depth_of_speculation_that_is_none(written: str) -> None:
    text = (
        "gateway: {node: a}\nnodes: {a: {host: 10.0.0.1}}\nmodels:\n"
        f"  m: {{engine: vllm, source: a/b, speculative: {written}}}\n"
    )
    with pytest.raises(InventoryError) as error:
        load(text, "i.yml")
    assert "i.yml:4: models.m.speculative: write `auto`, `off`, or 1 to 16" in str(error.value.mistakes)
