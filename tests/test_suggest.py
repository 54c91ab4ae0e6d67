"""What a house should run: five households, each planned as suggested; what decides; what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from homelab import suggest, suggest_command
from homelab.cli import app
from homelab.errors import InventoryError
from homelab.facts import Survey, Weights
from homelab.fit_command import load_catalog
from homelab.inventory import Inventory, load
from homelab.models.scores import Score
from homelab.placement import place
from homelab.suggest import COMFORTABLE_TOKENS_PER_S, CONTEXTS, Suggestion, with_models, written
from tests.machines import gpu, household, laptop, machine, pi, survey

# The houses of docs/suggest.md.
HOUSES = ("RTX 4060 Laptop", "RTX 4090", "2x RTX 3090", "M4 Max 36GB", "DGX Spark")


def headers(*sources: str) -> dict[str, Weights]:
    """The catalog's headers of sources."""
    found = {}
    for source in sources:
        entry = load_catalog().find(source)
        assert entry is not None
        document = entry[0].document(entry[1])
        size = document.get("file_bytes") or document["tensor_bytes"]
        found[source] = Weights(source=source, header=document, bytes=size)
    return found


def planned(house: Inventory, seen: Survey, found: Suggestion) -> Any:
    """The plan of the house with what is written down for it."""
    text = yaml.safe_dump(house.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    inventory = load(with_models(text, found.picks), "inventory.yml")
    sources = [v.source for m in inventory.models.values() for v in m.variants]
    facts = seen.model_copy(update={"models": {**seen.models, **headers(*sources)}})
    return place(inventory, facts)


def suggested(house: Inventory, seen: Survey, *purposes: str, **more: Any) -> Suggestion:
    return suggest.suggest(house, seen, suggest_command.known(), purposes or suggest.USUAL, **more)


# -- five households


@pytest.mark.parametrize("machines", HOUSES)
def test_what_is_suggested_is_what_is_planned(machines: str) -> None:
    house, seen = suggest_command.imagined(machines)
    found = suggested(house, seen)
    assert {p for pick in found.picks for p in pick.purposes} | set(found.missing) == set(suggest.USUAL)
    assert {"coding", "chat"} <= {p for pick in found.picks for p in pick.purposes}
    layout = planned(house, seen, found)
    assert not layout.unplaced
    assert {(p.model, p.node, p.gpus, p.engine, p.request.context) for p in layout} == {
        (p.model, p.node, p.gpus, p.engine, p.request.context)
        for pick in found.picks
        for p, _ in pick.placements
    }
    for pick in found.picks:
        for p, speed in pick.placements:
            purpose = next(x for x in pick.purposes if x in CONTEXTS)
            assert p.request.context >= CONTEXTS[purpose][0]
            assert pick.model.kind == "embedding" or (speed is not None and speed.decode_tokens_per_s >= 5)


@pytest.mark.parametrize("machines", ["M4 Max 36GB", "P40", "2x V100 SXM2 16GB"])
def test_no_engine_is_suggested_where_it_does_not_run(machines: str) -> None:
    found = suggested(*suggest_command.imagined(machines))
    engines = {p.engine for pick in found.picks for p, _ in pick.placements}
    assert engines == {"llamacpp"}


def test_a_whole_house_is_used_and_its_small_machine_embeds() -> None:
    house = load(
        "gateway: {node: pi}\nnodes:\n  workstation: {host: 192.168.1.10}\n  server: {host: 192.168.1.11}\n"
        "  laptop: {host: 192.168.1.12}\n  pi: {host: 192.168.1.2}\n",
        "x",
    )
    seen = household().model_copy(update={"models": {}})
    found = suggested(house, seen)
    assert not planned(house, seen, found).unplaced
    used = {(p.node, g) for pick in found.picks for p, _ in pick.placements for g in p.gpus}
    assert used == {(n, g.uuid) for n, r in seen.nodes.items() if r.facts for g in r.facts.gpus}


# -- what decides


def test_scores_decide_but_only_among_the_same_benchmark_and_a_slow_model_is_worth_less() -> None:
    house, seen = suggest_command.imagined("RTX 4090")
    known = suggest_command.known()
    best = suggested(house, seen, "coding").picks[0].name
    others = [n for n in known.scores if n != best]
    without = suggest.suggest(
        house, seen, replace(known, scores={n: known.scores[n] for n in others}), ("coding",)
    )
    assert without.picks[0].name != best
    # A figure of another benchmark says nothing here, however large.
    odd = {**known.scores, "qwen3-4b": (Score("coding", "Mine", 100.0, "me", "2026-01"),)}
    assert suggest.suggest(house, seen, replace(known, scores=odd), ("coding",)).picks[0].name == best


def test_weights_below_four_bits_are_not_suggested() -> None:
    for machines in HOUSES:
        found = suggested(*suggest_command.imagined(machines), "chat")
        every = [p.weights for p in found.picks] + [o.weights for os in found.others.values() for o in os]
        assert every and not [w for w in every if suggest.COARSE.match(w)]


def test_the_best_weights_are_those_that_are_comfortable() -> None:
    found = suggested(*suggest_command.imagined("RTX PRO 6000 Workstation"), "coding")
    [(_, speed)] = found.picks[0].placements
    assert speed is not None and speed.decode_tokens_per_s > COMFORTABLE_TOKENS_PER_S * 0.8


def test_an_embedder_takes_no_model_s_place() -> None:
    house, seen = suggest_command.imagined("RTX 4060 Laptop")
    alone = suggested(house, seen, "coding").picks[0]
    beside = suggested(house, seen, "coding", "embedding")
    assert alone.name in [p.name for p in beside.picks]


def test_where_nothing_fits_the_reason_is_told() -> None:
    found = suggested(*suggest_command.imagined("2GiB"), "coding")
    assert not found.picks and "2.0 GiB" in found.missing["coding"]
    empty = load("gateway: {node: a}\nnodes: {a: {host: 192.168.1.9}}\n", "x")
    assert suggested(empty, survey(a="silent")).missing["chat"] == "no machine could be looked at"


def test_beside_models_that_are_there_and_on_one_node_only() -> None:
    house = load(
        "gateway: {node: box}\nnodes:\n  box: {host: 192.168.1.9}\n  other: {host: 192.168.1.12}\nmodels:\n"
        "  mine: {engine: llamacpp, source: 'Qwen/Qwen3-14B-GGUF:Q8_0', context: 8192, node: box}\n",
        "x",
    )
    card = gpu("NVIDIA GeForce RTX 3090", 24108)
    seen = survey(
        headers("Qwen/Qwen3-14B-GGUF:Q8_0"),
        box=machine("box", card, address="192.168.1.9"),
        other=laptop(),
    )
    found = suggested(house, seen, "coding", node="box")
    assert found.beside == ("mine",)
    assert [p.node for pick in found.picks for p, _ in pick.placements] == ["box"]
    assert found.picks[0].model.node == "box"
    layout = planned(house, seen, found)
    assert not layout.unplaced and {p.model for p in layout} == {"mine", found.picks[0].name}


# -- what is written


@pytest.fixture
def picks() -> Any:
    house, seen = suggest_command.imagined("RTX 4090")
    return suggested(house, seen, "coding", "embedding").picks


HEAD = "gateway: {node: a}  # g\nnodes: {a: {host: 192.168.1.9}}\n"
INVENTORIES = [
    HEAD,
    HEAD + "models: {}\n# behind\n",
    """\
gateway: {node: a}
models:
    tiny:   # mine
        engine: llamacpp
        source: /m/t.gguf # t

# about nodes
nodes: {a: {host: 192.168.1.9}}
""",
    HEAD + "models:\n  tiny:\n    engine: llamacpp\n    source: /m/t.gguf",
    HEAD + "models:\n  t: {engine: llamacpp, source: /m/t.gguf}\n\n\n# the end\n",
    (HEAD + "models:\n  t:\n    engine: llamacpp\n    source: /m/t.gguf\n  # mine\n").replace("\n", "\r\n"),
    HEAD + "models: {}  # none yet\n",
    HEAD + "...\n",
]


@pytest.mark.parametrize("text", INVENTORIES)
def test_models_are_added_and_nothing_else_is_touched(text: str, picks: Any) -> None:
    before, after = load(text, "x"), with_models(text, picks)
    found = load(after, "x")
    assert {**found.models} == {**before.models, **{p.name: p.model for p in picks}}
    assert found.model_copy(update={"models": {}}) == before.model_copy(update={"models": {}})
    assert ("\r\n" in after) == ("\r\n" in text)
    kept = [line for line in text.replace("models: {}", "models:").splitlines() if line.strip()]
    lines = iter(after.splitlines())
    assert all(line in lines for line in kept)  # each line, and in its order


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("models: {t: {engine: llamacpp, source: /m/t.gguf}}", "in braces"),
        ("models:", "without a value"),
        ("models: [a]", "no mapping"),
    ],
)
def test_models_that_cannot_be_added_to_are_said(models: str, said: str, picks: Any) -> None:
    with pytest.raises(InventoryError, match=said):
        with_models(f"gateway: {{node: a}}\nnodes: {{a: {{host: 192.168.1.9}}}}\n{models}\n", picks)


def test_what_comes_next_keeps_its_comment(picks: Any) -> None:
    text = "gateway: {node: a}\nmodels:\n  t:\n    engine: llamacpp\n    source: /m/t.gguf\n  # mine\n"
    text += "\n# The nodes\n"
    after = with_models(text + "nodes: {a: {host: 192.168.1.9}}\n", picks)
    assert after.endswith("\n\n# The nodes\nnodes: {a: {host: 192.168.1.9}}\n")
    assert after.index("# mine") < after.index(picks[0].name) < after.index("# The nodes")


def test_an_inventory_in_braces_is_refused(picks: Any) -> None:
    with pytest.raises(InventoryError, match="block of keys"):
        with_models("{gateway: {node: a}, nodes: {a: {host: 192.168.1.9}}}\n", picks)


def test_a_model_without_a_place_keeps_nobody_else_from_one() -> None:
    text = (
        "gateway: {node: box}\nnodes: {box: {host: 192.168.1.9}}\n"
        "models: {lost: {engine: llamacpp, source: 'x/Y-GGUF:Q4_K_M'}}\n"
    )
    card = gpu("NVIDIA GeForce RTX 3090", 24108)
    found = suggested(load(text, "x"), survey(box=machine("box", card, address="192.168.1.9")), "coding")
    assert found.picks and found.without_place == ("lost",)


def test_the_order_of_choices_is_the_best_one() -> None:
    """On a small Mac the coder that is chosen first would leave no room for whoever chats better."""
    found = suggested(*suggest_command.imagined("M4 16GB"), "coding", "chat")
    assert [p.purposes for p in found.picks] == [("coding", "chat")]


def test_who_has_no_score_is_judged_by_the_others_and_shown_without() -> None:
    found = suggested(*suggest_command.imagined("RTX 4090"), "agents", "coding")
    [pick] = found.picks
    assert pick.name == "qwen3.8-27b" and [s.benchmark for s in pick.scores] == ["LiveCodeBench v6"]
    assert found.unscored["agents"]


def test_in_ram_a_mixture_is_suggested_and_not_what_nobody_would_wait_for() -> None:
    house = load("gateway: {node: box}\nnodes: {box: {host: 192.168.1.9}}\n", "x")
    found = suggested(house, survey(box=machine("box", address="192.168.1.9", ram_gib=64)), "coding")
    shape = load_catalog().entries[found.picks[0].name].text
    assert shape.get("num_experts") or shape.get("num_local_experts") or shape.get("n_routed_experts")


def test_like_cards_get_the_same_model() -> None:
    found = suggested(*suggest_command.imagined("4x H100 PCIe"), "coding")
    assert [len(p.placements) for p in found.picks] == [4]


def test_a_name_that_is_taken_is_refused(picks: Any) -> None:
    text = with_models(INVENTORIES[0], picks)
    with pytest.raises(InventoryError, match=r"these names already: .*qwen"):
        with_models(text, picks)


def test_what_is_written_is_read_as_it_was_meant(picks: Any) -> None:
    assert set(yaml.safe_load(written(picks))) == {p.name for p in picks}


# -- the command


def run(*arguments: str, inventory: Path | None = None) -> Any:
    command = ["suggest", *arguments, *(["-i", str(inventory)] if inventory else [])]
    return CliRunner().invoke(app, command, env={"COLUMNS": "100"})


def test_the_command_shows_the_trade_and_what_to_write() -> None:
    done = run("--gpu", "RTX 4090", "--for", "coding")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "Instead of qwen3.8-27b for coding, by LiveCodeBench v6:" in said
    assert "-6.4, as fast" in said and "× the speed" in said and "nobody has published their" in said
    assert "models: qwen3.8-27b:" in said
    assert max(map(len, done.output.splitlines()[:12])) <= 100


def test_its_json_has_all_of_it() -> None:
    found = json.loads(run("--gpu", "2x RTX 3090", "--json").stdout)
    assert {p for m in found["models"] for p in m["for"]} >= {"coding", "chat"}
    first = found["models"][0]
    assert first["scores"][0]["benchmark"] and first["scores"][0]["source"] and first["scores"][0]["date"]
    assert first["placements"][0]["speed"]["decode_tokens_per_s"] > 5
    assert yaml.safe_load(found["inventory"])
    assert {o["score"]["benchmark"] for o in found["others"]["coding"]} == {first["scores"][0]["benchmark"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "poetry", "--gpu", "RTX 4090"), "is no purpose"),
        (("--gpu", "RTX 9999"), "No GPU `RTX 9999` is known here"),
        (("--gpu", "RTX 4090", "--node", "a"), "contradict each other"),
        (("--gpu", "RTX 4090", "--write"), "--write adds to the inventory"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], said: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, InventoryError) and said in error.message


def test_this_machine_is_looked_at_and_written_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the silicon is not real: an inventory of this machine, which has no GPU here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inventory = tmp_path / "inventory.yml"
    text = "# mine\ngateway: {node: this}\nnodes: {this: {host: localhost, runtime: native}}  # here\n"
    inventory.write_text(text)
    inventory.chmod(0o640)
    done = run("--for", "embedding", "--write", inventory=inventory)
    assert done.exit_code == 0, done.output
    after = inventory.read_text()
    assert after.startswith(text) and load(after, "x").models
    assert inventory.stat().st_mode & 0o777 == 0o640
    error = run("--node", "nobody", inventory=inventory).exception
    assert isinstance(error, InventoryError) and "No node `nobody`" in error.message


def test_a_pi_alone_has_no_gpu_and_nobody_knows_how_fast_it_is() -> None:
    house = load("gateway: {node: pi}\nnodes: {pi: {host: 192.168.1.2}}\n", "x")
    found = suggested(house, survey(pi=pi()), "chat")
    assert all(speed is None for pick in found.picks for _, speed in pick.placements)
