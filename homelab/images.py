"""The one place where image tags and engine versions are pinned. Each can be overridden in the inventory under `images:`."""

from __future__ import annotations

# Exact tags, seen on their registries: llama.cpp publishes one image per build and accelerator, LiteLLM and vLLM one per release.
IMAGES: dict[str, dict[str, str]] = {
    "vllm": {"nvidia": "vllm/vllm-openai:v0.33.0"},
    "llamacpp": {
        "nvidia": "ghcr.io/ggml-org/llama.cpp:server-cuda12-b9603",
        "cpu": "ghcr.io/ggml-org/llama.cpp:server-b9603",
    },
    "litellm": {"cpu": "ghcr.io/berriai/litellm:v1.106.2"},
}
