"""Further names of models, who answers for whom, and each way by which a prompt can leave the house."""

from __future__ import annotations

import pytest

from homelab import gateway, routes
from homelab.endpoints import Endpoint
from homelab.errors import InventoryError
from homelab.fallbacks import circle, in_place_of
from homelab.inventory import Inventory, load

HOUSE = """\
gateway: {node: a}
nodes: {a: {host: 192.168.1.9}}
models:
  large: {engine: vllm, source: Org/L}
  small: {engine: vllm, source: Org/S}
  own: {engine: vllm, source: Org/O, private: true}
cloud:
  claude: {model: anthropic/claude-sonnet-4-6}
"""


def house(more: str = "") -> Inventory:
    return load(HOUSE + more, "inventory.yml")


def test_every_way_out_is_named() -> None:
    assert routes.ways_out(load(HOUSE.partition("cloud:")[0], "x")) == []
    found = routes.ways_out(
        house(
            "fallbacks: {small: [large], large: [claude]}\n"
            "aliases: {sonnet: claude, coder: large}\ntiers: {quality: claude, volume: small}\n"
        )
    )
    assert found == [
        "to anthropic/claude-sonnet-4-6, whenever a client asks for `claude` (or `quality`, `sonnet`)",
        "to anthropic/claude-sonnet-4-6, whenever `large` cannot answer (`fallbacks`)",
        "to anthropic/claude-sonnet-4-6, whenever `small` cannot answer, by way of `large` (`fallbacks`)",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("aliases: {coder: nobody}", "aliases.coder: no model `nobody`"),
        ("aliases: {small: large}", "aliases.small: `small` is a model already"),
        ("tiers: {claude: large}", "tiers.claude: `claude` is a model already"),
        ("aliases: {q: large}\ntiers: {q: small}", "tiers.q: is an alias too"),
        ("aliases: {'a b': large}", "aliases.a b"),
        ("aliases: {'*': large}", "aliases.*"),
        ("fallbacks: {small: [large], large: [small]}", "goes in a circle: small -> large -> small"),
        ("fallbacks: {small: [small]}", "goes in a circle: small -> small"),
        ("fallbacks: {own: [claude]}", "`own` is private, and this leads out of the house: own -> claude"),
        ("fallbacks: {own: [large], large: [claude]}", "leads out of the house: own -> large -> claude"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: str, said: str) -> None:
    with pytest.raises(InventoryError) as caught:
        house(more + "\n")
    assert any(said in mistake for mistake in caught.value.mistakes), caught.value.mistakes


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("antropic/claude-sonnet-4-6", "knows no provider `antropic`, did you mean `anthropic`?"),
        ("gpt-4oo", "knows no model `gpt-4oo`, did you mean `gpt-4o`?"),
        ("claude", "with its provider in front"),
    ],
)
def test_a_cloud_model_that_litellm_does_not_know_is_refused(model: str, said: str) -> None:
    with pytest.raises(InventoryError) as caught:
        load(HOUSE.replace("anthropic/claude-sonnet-4-6", model), "x")
    assert any(said in mistake for mistake in caught.value.mistakes), caught.value.mistakes


@pytest.mark.parametrize(
    "model", ["openai/gpt-9-not-yet", "mistral/mistral-large", "gemini/g", "groq/x/y", "gpt-4o"]
)
def test_what_it_may_know_is_taken(model: str) -> None:
    assert load(HOUSE.replace("anthropic/claude-sonnet-4-6", model), "x").cloud["claude"].model == model


def test_a_private_model_may_have_a_fallback_in_the_house() -> None:
    assert house("fallbacks: {own: [small], large: [claude]}\n").fallbacks["own"] == ("small",)


def test_chains_end_where_they_would_begin_again() -> None:
    chains = {"a": ["b", "c"], "b": ["c"], "c": ["a"]}
    assert list(in_place_of(chains, "a")) == [["a", "b"], ["a", "c"], ["a", "b", "c"]]
    assert circle(chains, "a") and circle(chains, "c")
    assert circle({"a": ["b"], "b": ["c"]}, "a") == []


def endpoint(name: str, number: int = 0, context: int | None = 4096) -> Endpoint:
    return Endpoint(
        name=name,
        kind="chat",
        url="http://192.168.1.9:8000",
        key="engine:a/x",
        context=context,
        id=f"a/{name}-{number}",
        node="a",
        origin="placed",
        upstream=name,
    )


def test_names_that_begin_alike_are_deployments_of_their_own() -> None:
    endpoints = [endpoint("m"), endpoint("m", 1), endpoint("n")]
    written = gateway.configuration(endpoints, {}, None, {"claude-*": "m", "coder": "n", "gone": "x"})
    names = [m["model_name"] for m in written["model_list"]]
    assert names == ["m", "m", "n", "claude-*", "claude-*"]
    ids = [m["model_info"]["id"] for m in written["model_list"]]
    assert len(set(ids)) == len(ids)
    assert written["router_settings"]["model_group_alias"] == {"coder": "n"}


def test_what_is_too_long_goes_only_to_those_that_were_named_and_read_more() -> None:
    endpoints = [
        endpoint("small", context=4096),
        endpoint("large", context=65536),
        endpoint("same", context=4096),
    ]
    written = gateway.configuration(endpoints, {"small": ["same", "large"]}, None, {"s": "small"})
    assert written["router_settings"]["context_window_fallbacks"] == [{"small": ["large"]}, {"s": ["large"]}]
    alone = gateway.configuration(endpoints, {}, None)["router_settings"]
    assert "context_window_fallbacks" not in alone and "optional_pre_call_checks" not in alone


def test_conversations_stay_where_there_are_several() -> None:
    written = gateway.configuration([endpoint("m"), endpoint("m", 1)], {}, None)
    assert written["router_settings"]["optional_pre_call_checks"] == ["session_affinity"]
