"""llama.cpp's vision projector (`mmproj`): a second GGUF beside the model, and the buffer in which an image
becomes tokens.

Which sizes count follows llama.cpp 0.6.0 (`tools/mtmd/clip.cpp`); the floats a patch were checked with
b11549's `mtmd_get_memory_usage` on six kinds of projector: never too little, at most half too much with
flash attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# (most tokens of an image, patches along one side of a token) where the header does not say.
# `clip_model_loader::load_hparams`.
TOKENS = {
    "gemma3": (256, 4), "gemma4v": (1120, 3), "glm4v": (4096, 2), "kimivl": (1024, 2), "pixtral": (1024, 2),
    "qwen2vl_merger": (4096, 2), "qwen2.5vl_merger": (4096, 2), "qwen3vl_merger": (4096, 2),
}  # fmt: skip
# `--image-max-tokens` lowers no further: images of one size, and small ones encoded together
# (`mtmd_context_params.batch_max_tokens`).
LEAST_TOKENS = {"gemma3": 256, "gemma4v": 1024}
UNKNOWN_COMPUTE = 2**30
UNKNOWN_BYTES = 3 * 2**29  # the largest seen in 16 bits have 1.2 GiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Projector:
    """A projector's file. `floats` a patch, of which the largest image has `token_patches` for each of
    `tokens`; `floats` is 0 when its header was not read or is of a kind not known here. `windowed`: with a
    mask of every patch against every other."""

    name: str
    bytes: int
    read: bool = False
    floats: int = 0
    heads: int = 0
    head_dim: int = 0
    tokens: int = 0
    least_tokens: int = 0
    token_patches: int = 0
    windowed: bool = False

    def compute_bytes(self, most_tokens: int | None, *, flash: bool) -> int:
        """An upper bound of its compute buffer for images of `most_tokens` (`--image-max-tokens`)."""
        if not self.floats:
            return UNKNOWN_COMPUTE
        patches = max(most_tokens or self.tokens, self.least_tokens) * self.token_patches
        row = self.floats + (0 if flash else self.heads * patches) + (patches // 2 if self.windowed else 0)
        return 4 * patches * row


def projectors(document: Mapping[str, Any]) -> tuple[Projector, ...]:
    """Those that lie beside a model, from its header document: whole headers where they were read, else
    only the sizes of files."""
    found = document.get("projectors") or {}
    return tuple(_projector(str(name), header) for name, header in sorted(found.items()))


def chosen(found: tuple[Projector, ...], wanted: str) -> Projector:
    """The one of this path or name; for another (`auto`, an address) the largest there is, and a guess
    where nothing is known."""
    name = wanted.rpartition("/")[2]
    named = next((p for p in found if p.name.rpartition("/")[2] == name), None)
    return named or max(found, key=lambda p: p.bytes, default=Projector(name=wanted, bytes=UNKNOWN_BYTES))


def _projector(name: str, header: Mapping[str, Any]) -> Projector:
    if "tensors" not in header:
        return Projector(name=name, bytes=int(header.get("file_bytes") or 0))
    tensors, metadata = header["tensors"], header["metadata"]
    size = sum(int(t[3]) for t in tensors)

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"clip.vision.{key}")
        return int(value) if isinstance(value, int) and 0 <= value < 1 << 24 else default

    kind = str(metadata.get("clip.vision.projector_type") or metadata.get("clip.projector_type"))
    hidden, heads = number("embedding_length"), number("attention.head_count")
    if kind not in TOKENS or not hidden or not heads or metadata.get("clip.has_audio_encoder") is True:
        return Projector(name=name, bytes=size, read=True)
    tokens, side = TOKENS[kind]
    side = number("spatial_merge_size") or number("projector.scale_factor") or side
    if pixels := number("image_max_pixels"):
        tokens = max(tokens, pixels // max(1, (number("patch_size", 14) * side) ** 2))
    gated = any(".ffn_gate." in str(t[0]) for t in tensors)
    # Qwen3-VL's answers of earlier layers are kept until the end.
    answers = 1 + sum(str(t[0]).endswith("fc2.weight") and "deepstack" in str(t[0]) for t in tensors)
    floats = (
        number("feed_forward_length") * (3 if gated else 1)
        + 5 * hidden
        + -(-number("projection_dim") * answers // side**2)
    )
    return Projector(
        name=name,
        bytes=size,
        read=True,
        floats=floats,
        heads=heads,
        head_dim=number("attention.head_dim", hidden // heads),
        tokens=tokens,
        least_tokens=LEAST_TOKENS.get(kind, 0),
        token_patches=side**2,
        windowed="clip.vision.n_wa_pattern" in metadata or "clip.vision.window_size" in metadata,
    )
