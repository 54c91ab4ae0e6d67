"""How a program comes to run on a node: what is missing is refused, and nobody gets another vendor's
image."""

from __future__ import annotations

from typing import Any

import pytest

from homelab.facts import GPU, Facts, Interface
from homelab.hosting import Refused, address_of, choose, vendors
from homelab.inventory import Inventory, load
from homelab.placement import place
from homelab.program import Container, Executable, Offer, PythonEnvironment
from homelab.render import gateway_choice
from tests.machines import DOCKER, GIB, MIB, gpu, machine, pi, survey, tiny_gguf, workstation

OURS = PythonEnvironment(name="toy", program="toy")
OFFER = Offer(
    name="llamacpp", images={"cuda": "toy:cuda", "cpu": "toy:cpu"}, environment=OURS, executable="toy-server"
)


def inventory(node: str = "", **more: Any) -> Inventory:
    text = f"gateway: {{node: n}}\nnodes: {{n: {{host: 192.168.1.10{node}}}}}\n"
    return load(text + "".join(f"{key}: {value}\n" for key, value in more.items()), "inventory.yml")


def radeon(**more: Any) -> GPU:
    card = gpu("AMD Radeon AI PRO R9700", 32000, **more)
    return card.model_copy(update={"vendor": "amd", "uuid": "AMD-1", "compute_capability": None})


def test_each_vendor_gets_the_image_of_its_own_flavour() -> None:
    card = gpu()
    assert choose(inventory(), "n", workstation(), OFFER, "nvidia", (card,)).program == Container(
        image="toy:cuda"
    )
    assert choose(inventory(), "n", pi(), OFFER, "cpu").program == Container(image="toy:cpu")


def test_a_vendor_without_a_file_is_refused_even_beside_nvidias_toolkit() -> None:
    facts = machine("n", radeon(), docker=DOCKER, weights=(tiny_gguf(),))
    with pytest.raises(Refused, match="does not know how to give a container a GPU of amd"):
        choose(inventory(), "n", facts, OFFER, "amd", facts.gpus)
    with pytest.raises(Refused, match="GPU of amd"):
        choose(inventory(images="{llamacpp: mine}"), "n", facts, OFFER, "amd", facts.gpus)
    models = "{t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}"
    layout = place(inventory(models=models), survey(n=facts))
    assert not layout.placements
    assert "GPU of amd" in layout.unplaced[0].reason


def test_a_vendor_for_which_there_is_no_image_is_refused_and_an_image_that_is_written_is_taken() -> None:
    cpu_only = Offer(name="llamacpp", images={"cpu": "toy:cpu"})
    with pytest.raises(
        Refused, match=r"llamacpp has no image for nvidia \(cuda\): name one, `images: \{llamacpp: …\}`"
    ):
        choose(inventory(), "n", workstation(), cpu_only, "nvidia", workstation().gpus)
    written = choose(
        inventory(images="{llamacpp: mine}"), "n", workstation(), cpu_only, "nvidia", workstation().gpus
    )
    assert written.program == Container(image="mine")


def test_what_keeps_docker_from_a_gpu_is_the_reason() -> None:
    card = gpu(container_obstacle="no toolkit")
    with pytest.raises(Refused, match="no toolkit"):
        choose(inventory(), "n", machine("n", card), OFFER, "nvidia", (card,))


def test_without_docker_the_nodes_own_program_comes_first_and_ours_runs_on_the_processor() -> None:
    bare = machine("n", gpu(), docker=None)
    own = bare.model_copy(update={"programs": {"toy-server": "/opt/toy-server"}})
    assert choose(inventory(), "n", own, OFFER, "nvidia", own.gpus).program == Executable(
        path="/opt/toy-server"
    )
    assert choose(inventory(), "n", bare, OFFER, "cpu").program == OURS
    with pytest.raises(Refused, match="needs a `toy-server` in PATH"):
        choose(inventory(), "n", bare, OFFER, "nvidia", bare.gpus)
    with pytest.raises(Refused, match="runs in Docker only"):
        choose(inventory(), "n", bare, Offer(name="llamacpp"), "cpu")


def test_what_runs_without_docker_goes_on_when_docker_comes() -> None:
    assert choose(inventory(), "n", pi(), OFFER, "cpu").runtime == "docker"
    assert choose(inventory(), "n", pi(), OFFER, "cpu", running="native").runtime == "native"
    written = inventory(node=", runtime: docker")
    assert choose(written, "n", pi(), OFFER, "cpu", running="native").runtime == "docker"


def test_vendors_are_read_from_their_own_files() -> None:
    assert vendors()["nvidia"].flavours == ("cuda",)
    assert vendors()["nvidia"].visible == "CUDA_VISIBLE_DEVICES"
    assert vendors()["cpu"].flavours == ("cpu",)


def on(*interfaces: Interface, arrived: str | None = None, **more: Any) -> Facts:
    update = {"interfaces": interfaces, "server_address": arrived, **more}
    return machine("n", weights=(tiny_gguf(),)).model_copy(update=update)


def by_name(node: str = "") -> Inventory:
    return load(f"gateway: {{node: n}}\nnodes: {{n: {{host: n.vpn{node}}}}}\n", "i")


ETHERNET = Interface(name="eth0", addresses=("10.0.0.5",))
WIFI = Interface(name="wlan0", addresses=("192.168.1.10", "fd00::10"), default_route=True)
TUNNEL = Interface(name="wg0", addresses=("10.8.0.5",))


def test_the_address_is_the_written_one_else_the_host_else_the_lan() -> None:
    facts = machine("n", address="192.168.1.10")
    assert address_of(inventory(node=", address: 10.0.0.9"), "n", facts) == "10.0.0.9"
    assert address_of(inventory(), "n", facts) == "192.168.1.10"
    assert address_of(by_name(), "n", facts) == "192.168.1.10"
    assert address_of(by_name(), "n", None) == "n.vpn"
    here = load("gateway: {node: n}\nnodes: {n: {host: localhost}}\n", "i")
    assert address_of(here, "n", facts) == "127.0.0.1"


@pytest.mark.parametrize("arrived", ["10.0.0.5", "192.168.1.10", "10.8.0.5", "100.64.1.2", "fd00::10", None])
def test_every_path_to_a_fresh_node_gives_the_same_address(arrived: str | None) -> None:
    tailscale = Interface(name="tailscale0", addresses=("100.64.1.2",))
    assert (
        address_of(by_name(), "n", on(ETHERNET, tailscale, TUNNEL, WIFI, arrived=arrived)) == "192.168.1.10"
    )


def test_where_nothing_else_is_known_ssh_s_path_decides() -> None:
    other = Interface(name="en1", addresses=("192.168.2.2",))
    assert address_of(by_name(), "n", on(ETHERNET, other, arrived="192.168.2.2")) == "192.168.2.2"
    rented = Interface(name="eth0", addresses=("203.0.113.9",))
    assert address_of(by_name(), "n", on(rented, arrived="203.0.113.9")) == "203.0.113.9"
    assert address_of(by_name(), "n", on(arrived="192.168.1.7")) == "192.168.1.7"


def test_a_host_that_is_no_address_of_the_machine_is_a_way_and_not_its_address() -> None:
    forwarded = load("gateway: {node: n}\nnodes: {n: {host: 203.0.113.9, port: 2222}}\n", "i")
    assert address_of(forwarded, "n", on(WIFI, arrived="192.168.1.10")) == "192.168.1.10"


def test_a_written_name_is_what_it_means_on_the_node() -> None:
    meant = on(ETHERNET, WIFI, arrived="10.0.0.5", resolved={"nas": ("fd00::10", "192.168.1.10")})
    assert address_of(by_name(", address: nas"), "n", meant) == "192.168.1.10"


@pytest.mark.parametrize(
    ("resolved", "said"),
    [
        ({"nas": ("127.0.1.1",)}, "`address: nas` is 127.0.1.1 there"),
        ({"nas": ()}, "`address: nas` is not known there"),
        ({}, "`address: nas` was not looked up there yet"),
    ],
)
def test_a_written_name_that_means_no_address_of_the_machine_is_refused_with_what_it_has(
    resolved: dict[str, tuple[str, ...]], said: str
) -> None:
    written, facts = by_name(", address: nas"), on(WIFI, arrived="192.168.1.10", resolved=resolved)
    with pytest.raises(Refused, match=said) as refused:
        address_of(written, "n", facts)
    assert "192.168.1.10, fd00::10" in str(refused.value)
    model = "models: {t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}\n"
    house = load(f"gateway: {{node: n}}\nnodes: {{n: {{host: n, address: nas}}}}\n{model}", "i")
    layout = place(house, survey(n=facts))
    assert said in layout.unplaced[0].reason
    assert said in str(gateway_choice(house, facts))


def test_what_runs_stays_where_it_is_while_a_written_name_is_not_known() -> None:
    from homelab.facts import DeployedService

    there = DeployedService(
        cluster="home",
        name="t",
        spec="1",
        runtime="docker",
        state="running",
        labels={"homelab.address": "192.168.1.10"},
    )
    for resolved in ({"nas": ()}, {}):
        facts = on(ETHERNET, WIFI, arrived="10.0.0.5", resolved=resolved, services=(there,))
        assert address_of(by_name(", address: nas"), "n", facts) == "192.168.1.10"


def test_two_spellings_of_one_argument_are_one_plan() -> None:
    """`tensor_parallel_size: 2` was planned with half of the weights on a single GPU."""
    from tests.machines import HUB, server

    for spelling in ("tensor_parallel_size: 2", "--tensor-parallel-size: 2", "tp: '2'", "-tp: 2"):
        models = f"{{q: {{engine: vllm, source: Qwen/Qwen3-4B-AWQ, context: 4096, args: {{{spelling}}}}}}}"
        [p] = place(inventory(models=models), survey(HUB, n=server())).placements
        assert p.gpus == ("GPU-3090-0", "GPU-3090-1"), spelling
        assert dict(p.request.args) in ({"tensor-parallel-size": 2}, {"tensor-parallel-size": "2"})
        weights = next(t.bytes for t in p.footprint.terms if t.name == "weights")
        assert weights < 1.5 * GIB
        assert 2 * weights > 2.5 * GIB - 64 * MIB


def test_an_address_of_a_network_that_came_later_is_not_taken_over() -> None:
    facts = machine("n", address="192.168.1.10")
    both = facts.model_copy(
        update={
            "server_address": "10.8.0.5",
            "interfaces": (*facts.interfaces, Interface(name="wg0", addresses=("10.8.0.5",))),
        }
    )
    assert address_of(inventory(), "n", both) == "192.168.1.10"
