"""Facts of machines that people have at home, and headers of models that they run, to plan with."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from homelab.facts import (
    CPU,
    GPU,
    DeployedService,
    Disk,
    Docker,
    Facts,
    Failure,
    Interface,
    ListeningPort,
    NodeReport,
    Process,
    Survey,
    Weights,
)
from homelab.secrets import Secrets
from homelab.service import Service as Rendered

GIB = 1024**3
MIB = 1024**2
KEYS = Secrets(gateway_key=SecretStr("sk-test-gateway"), engine_secret=SecretStr("test"))
DOCKER = Docker(
    version="27.4.0",
    api_version="1.47",
    compose_version="2.39.1",
    reachable=True,
    runtimes=("nvidia", "runc"),
    data_root="/var/lib/docker",
)


def gpu(
    name: str = "NVIDIA GeForce RTX 4090",
    total_mib: int = 24106,
    free_mib: int | None = None,
    index: int = 0,
    **more: Any,
) -> GPU:
    """`total_mib` is what CUDA sees."""
    free = total_mib if free_mib is None else free_mib
    return GPU(
        vendor="nvidia",
        index=index,
        uuid=f"GPU-{name.split()[-1]}-{index}",
        name=name,
        memory_total_bytes=total_mib * MIB,
        memory_free_bytes=free * MIB,
        memory_used_bytes=(total_mib - free) * MIB,
        compute_capability="8.9" if "4090" in name else "8.6",
        driver="580.95.05",
        cuda="13.0",
        **more,
    )


def machine(
    name: str,
    *gpus: GPU,
    address: str = "192.168.1.10",
    ram_gib: int = 64,
    docker: Docker | None = DOCKER,
    disk_gib: int = 900,
    **more: Any,
) -> Facts:
    return Facts(
        schema_version=1,
        hostname=name,
        machine_id=f"id-{name}",
        os="Debian GNU/Linux 12 (bookworm)",
        kernel="6.1.0",
        arch="x86_64",
        cpu=CPU(model="AMD Ryzen 7", cores=8, threads=16),
        memory_total_bytes=ram_gib * GIB,
        memory_available_bytes=ram_gib * GIB * 9 // 10,
        home="/home/me",
        user="me",
        python="3.11.2",
        server_address=address,
        interfaces=(Interface(name="eth0", mac="02:00:00:00:00:01", addresses=(address,)),),
        disks=(Disk(purpose="models", path="/home", total_bytes=1000 * GIB, free_bytes=disk_gib * GIB),),
        gpus=gpus,
        docker=docker,
        **more,
    )


def workstation(**more: Any) -> Facts:
    firefox = Process(pid=1411, name="firefox", user="me", memory_bytes=900 * MIB)
    return machine("workstation", gpu(free_mib=24106 - 1200, display=True, processes=(firefox,)), **more)


def server(**more: Any) -> Facts:
    pair = [gpu("NVIDIA GeForce RTX 3090", 24266, index=i) for i in (0, 1)]
    return machine("server", *pair, address="192.168.1.11", **more)


def laptop(**more: Any) -> Facts:
    return machine(
        "laptop", gpu("NVIDIA GeForce RTX 3070 Laptop GPU", 7970), address="192.168.1.12", ram_gib=16, **more
    )


def pi(**more: Any) -> Facts:
    return machine("pi", address="192.168.1.2", ram_gib=8, **more)


def survey(models: dict[str, Weights] | None = None, **nodes: Facts | str) -> Survey:
    """A node given as text did not answer, for that reason."""
    reports = {
        name: NodeReport(reachable=True, facts=facts)
        if isinstance(facts, Facts)
        else NodeReport(reachable=False, error=Failure(message=facts))
        for name, facts in nodes.items()
    }
    return Survey(nodes=reports, models=models or {})


def qwen3(source: str, weights_gib: float, layers: int, hidden: int, kv_heads: int, **config: Any) -> Weights:
    """A model of the Qwen3 family on the hub, by its size and dimensions."""
    header = {
        "format": "safetensors",
        "config": {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "head_dim": 128,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": hidden * 4,
            "num_attention_heads": 32,
            "num_key_value_heads": kv_heads,
            "tie_word_embeddings": True,
            **config,
        },
        "tensor_bytes": int(weights_gib * GIB),
        "dtypes": {},
        "groups": {},
        "files": [["model.safetensors", int(weights_gib * GIB)]],
    }
    return Weights(source=source, header=header, bytes=int(weights_gib * GIB))


def tiny_gguf(path: str = "/models/tiny.gguf", layers: int = 4) -> Weights:
    """A small GGUF as the agent describes it."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": 576,
        "llama.feed_forward_length": 1536,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.context_length": 8192,
        "tokenizer.ggml.tokens": {"type": "string", "length": 49152},
        "tokenizer.chat_template": "{{ messages }}",
    }
    tensors: list[list[Any]] = [
        ["token_embd.weight", [576, 49152], "Q8_0", 30081024],
        ["output_norm.weight", [576], "F32", 2304],
    ]
    for i in range(layers):
        tensors += [
            [f"blk.{i}.attn_k.weight", [576, 192], "Q8_0", 117504],
            [f"blk.{i}.ffn_up.weight", [576, 1536], "Q8_0", 940032],
        ]
    size = sum(t[3] for t in tensors) + 2_000_000
    header = {"format": "gguf", "version": 3, "file_bytes": size, "metadata": metadata, "tensors": tensors}
    return Weights(source=path, path=path, present=True, bytes=size, header=header)


AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
HUB = {
    "Qwen/Qwen3-4B-AWQ": qwen3("Qwen/Qwen3-4B-AWQ", 2.5, 36, 2560, 8, intermediate_size=9728, **AWQ),
    "Qwen/Qwen3-30B-A3B-AWQ": qwen3(
        "Qwen/Qwen3-30B-A3B-AWQ",
        15.66,
        48,
        2048,
        4,
        model_type="qwen3_moe",
        architectures=["Qwen3MoeForCausalLM"],
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        **AWQ,
    ),
    "Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M": Weights(
        source="Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M", error="the hub was not asked"
    ),
}


def household(**more: Facts | str) -> Survey:
    """The household of inventory.example.yml."""
    nodes: dict[str, Facts | str] = {
        "workstation": workstation(),
        "server": server(weights=(tiny_gguf(),)),
        "laptop": laptop(),
        "pi": pi(),
    }
    return survey(HUB, **(nodes | more))


def deployed(services: tuple[Rendered, ...], node: str, **more: Any) -> tuple[DeployedService, ...]:
    """What an agent would report once these were deployed and healthy."""
    return tuple(
        DeployedService(
            cluster=s.unit.cluster,
            name=s.name,
            role=s.role,
            serves=s.unit.serves,
            spec=s.spec,
            runtime="docker" if s.runtime == "docker" else "native",
            state=more.get("state", "running"),
            listens=more.get("state", "running") == "running",
            labels=s.labels,
            project=s.project,
        )
        for s in services
        if s.node == node
    )


def listening(port: int, process: str = "nginx") -> ListeningPort:
    return ListeningPort(port=port, address="0.0.0.0", process=process)
