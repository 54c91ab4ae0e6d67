"""How fast a model answers where it is placed, before anybody has measured it. Pure: shapes and devices in,
tokens per second out.

Decode reads all active weights and the cache once for each token: bytes over bandwidth. Reading a prompt
computes: operations over compute. What part of either an engine reaches on which hardware, with figures
behind it, is the engine's own `EFFICIENCIES`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from homelab.engines import Device, Efficiency, Footprint, Reading, Request, engines
from homelab.models.shape import Layer, ModelShape

# Assumed, as parts of what there is: DDR4-3200 has 51 GB/s, DDR5-5600 90 (two channels), PCIe 4.0 31.5. Runs
# with a part in RAM come out within 15 % of it.
RAM_GB_PER_S, PCIE_GB_PER_S = 40.0, 25.0
RAM_SPREAD = 0.6
UNSEEN_SPREAD = 0.5  # on a kind of card that no figure is from
# Before Volta (7.0) products are of 8-bit integers, and FP16 says nothing: a P40 has 0.2 TFLOPS of that.
FP16_SINCE = 7.0
# How likely a drafted token is what the model would have said, and how far speeds lie from that, for it
# depends on the text. Fitted to the runs with drafts in `bench/fit/data/speed.jsonl`.
ACCEPTANCE = 0.6
DRAFTS_SPREAD = 0.4
GAINS_NOTHING = "drafted tokens gain nothing on this kind of device"
# Projections of a recurrent layer for each channel of its convolution: Qwen3.6-27B has 16 384 columns in and
# 6144 rows out beside 10 240 channels.
RECURRENT_WIDTH = 2.2
# Below this nobody waits for an answer: slower than reading aloud, and a prompt as long as a break.
SLOW_TOKENS_PER_S, SLOW_PROMPT_S = 5.0, 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Predicted tokens per second of one placement, for one request at a time. Decode is said with a cache
    of `context` tokens and with an empty one, prefill for a prompt of `context` tokens; None where the
    device's compute is not known. `spread` 0.3 is ±30 %. `assumed` says what no figure stands behind."""

    context: int
    decode_tokens_per_s: float
    decode_empty_tokens_per_s: float
    spread: float
    prefill_tokens_per_s: float | None = None
    prefill_spread: float | None = None
    seconds_per_token: float | None = None
    seconds_per_token_squared: float | None = None
    assumed: tuple[str, ...] = ()

    def prompt_seconds(self, tokens: int) -> float | None:
        """How long a prompt takes to be read, in seconds: attention makes it grow faster than the prompt."""
        if self.seconds_per_token is None or self.seconds_per_token_squared is None:
            return None
        return tokens * self.seconds_per_token + tokens**2 * self.seconds_per_token_squared

    @property
    def slow(self) -> str:
        """Why nobody would want to use it, empty where somebody would."""
        if self.decode_tokens_per_s < SLOW_TOKENS_PER_S:
            return f"about {self.decode_tokens_per_s:.1f} tokens/s are slower than most people read"
        seconds = self.prompt_seconds(self.context)
        if seconds is not None and seconds > SLOW_PROMPT_S:
            return f"a prompt as long as its context takes about {seconds / 60:.0f} minutes to be read"
        return ""


def backend(device: Device) -> str:
    """Under which name an engine's efficiency for a device is kept: its vendor, with its tier, or whether it
    shares the machine's RAM (Apple's always do)."""
    if device.memory_kind == "unified" and device.vendor != "apple":
        return f"{device.vendor} unified"
    return f"{device.vendor} {device.tier}".rstrip()


def predict(
    shape: ModelShape, request: Request, footprint: Footprint, device: Device, *, engine: str
) -> Speed | None:
    """The speed on this device. None where its bandwidth or the size of the model's experts is not known,
    where nothing is known of the engine there, or for a model that generates nothing."""
    known = engines()[engine]
    if not device.gb_per_s or request.kind != "chat":
        return None
    assumed = []
    found = known.EFFICIENCIES.get(backend(device))
    if found is None and (alike := known.EFFICIENCIES.get(device.vendor)) is not None:
        found = replace(alike, spread=UNSEEN_SPREAD, prefill_spread=UNSEEN_SPREAD)
        assumed.append(f"what {known.NAME} reaches of other {device.vendor} cards")
    if found is None:
        return None
    if shape.experts and not (shape.expert_bytes and shape.experts_used):
        return None
    if shape.experts and float(device.compute_capability or FP16_SINCE) < FP16_SINCE:
        found = replace(found, spread=UNSEEN_SPREAD)
        assumed.append("a mixture on a card of before 2017, of which there is no figure")
    reading = known.reading(shape, request, footprint, device)
    return _predict(shape, request.context, reading, device, found, assumed)


def document(speed: Speed | None) -> dict[str, Any] | None:
    """A speed as every JSON document has it."""
    if speed is None:
        return None
    return {
        "context": speed.context,
        "decode_tokens_per_s": speed.decode_tokens_per_s,
        "decode_empty_tokens_per_s": speed.decode_empty_tokens_per_s,
        "decode_spread": speed.spread,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "prefill_spread": speed.prefill_spread,
        "prompt_seconds": speed.prompt_seconds(speed.context),
        "assumed": list(speed.assumed),
        "slow": speed.slow,
    }


def _predict(
    shape: ModelShape,
    context: int,
    reading: Reading,
    device: Device,
    found: Efficiency,
    assumed: list[str],
) -> Speed:
    bandwidth = (device.gb_per_s or 0) * 1e9 * found.decode * reading.parallel
    overhead = found.layer_us + found.parallel_us * (reading.parallel - 1)
    overhead *= 1e-6 * len(shape.layers)

    def step(tokens: int, drafts: int) -> float:
        at_once = 1 + drafts
        cached = sum(_cached(layer, reading, tokens) for layer in shape.layers) + _states(shape)
        read = _dense(shape) + shape.expert_bytes * _visited(shape, at_once)
        in_ram = reading.ram_dense_bytes + reading.ram_expert_bytes * _visited(shape, at_once)
        on_device = max(0.0, read - in_ram) + cached + (reading.drafting_bytes if drafts else 0)
        return on_device / bandwidth + in_ram / (RAM_GB_PER_S * 1e9) + overhead

    def decode(tokens: int) -> float:
        plain = 1 / step(tokens, 0)
        said = sum(ACCEPTANCE**n for n in range(reading.drafts + 1))
        return plain + found.drafts * (said / step(tokens, reading.drafts) - plain)

    spread = found.spread
    in_ram = reading.ram_dense_bytes + reading.ram_expert_bytes
    if in_ram:
        spread = max(spread, RAM_SPREAD)
        assumed.append(f"RAM with {RAM_GB_PER_S:.0f} GB/s and PCIe with {PCIE_GB_PER_S:.0f}")
    if reading.drafts:
        spread = max(spread, DRAFTS_SPREAD)
        assumed.append(
            f"{ACCEPTANCE:.0%} of drafted tokens accepted" if found.drafts > 0.5 else GAINS_NOTHING
        )
    linear = squared = None
    if device.tflops and found.prefill and float(device.compute_capability or FP16_SINCE) >= FP16_SINCE:
        # GPUs that share a layer wait for each other's sums: two are 1.0 to 1.4 times one (RTX 5090).
        compute = device.tflops * 1e12 * found.prefill * reading.parallel**0.5
        compute *= found.experts if shape.experts else 1
        linear = 2 * active_parameters(shape) / compute + in_ram / (PCIE_GB_PER_S * 1e9) / reading.batch
        squared = 0.0
        for layer in shape.layers:
            # Two products of two operations for each head and cached token; half are masked.
            operations = 2 * layer.heads * (layer.key_dim + layer.value_dim)
            if layer.attention in ("full", "mla"):
                squared += operations / 2 / compute
            elif layer.window is not None:
                linear += operations * min(layer.window, context) / compute
    return Speed(
        context=context,
        decode_tokens_per_s=decode(context),
        decode_empty_tokens_per_s=decode(0),
        spread=spread,
        prefill_tokens_per_s=1 / (linear + context * (squared or 0.0)) if linear else None,
        prefill_spread=max(found.prefill_spread, RAM_SPREAD if in_ram else 0.0) if linear else None,
        seconds_per_token=linear,
        seconds_per_token_squared=squared,
        assumed=tuple(assumed),
    )


def active_parameters(shape: ModelShape) -> float:
    """Parameters that one token of a prompt is multiplied with, from the model's dimensions: the number of
    all of them is not in every header."""
    total = 0.0
    for layer in shape.layers:
        total += 3 * shape.hidden * shape.intermediate
        if layer.attention != "none":
            rows = layer.heads * (layer.key_dim + layer.value_dim)
            total += shape.hidden * (rows + layer.kv_heads * (layer.key_dim + layer.value_dim))
        if layer.recurrent and shape.recurrent:
            total += RECURRENT_WIDTH * shape.hidden * shape.recurrent.conv_channels
    return total


def bytes_of_a_token(shape: ModelShape) -> float:
    """Bytes of weights that a token of one request reads."""
    return _dense(shape) + shape.expert_bytes * _visited(shape, 1)


def _dense(shape: ModelShape) -> int:
    """Bytes of weights that every token reads. Of an input table one row is read, unless it gives the output
    too."""
    idle = shape.lookup_bytes + shape.vision_bytes + shape.mtp_bytes + shape.expert_bytes
    idle += 0 if shape.tied_embeddings else shape.embedding_bytes
    return max(0, shape.weights_bytes - idle)


def _visited(shape: ModelShape, tokens: int) -> float:
    """The share of the experts that so many tokens visit together, each its own by chance."""
    if not shape.experts:
        return 0.0
    return float(1 - (1 - shape.experts_used / shape.experts) ** tokens)


def _cached(layer: Layer, reading: Reading, tokens: int) -> float:
    """Bytes of one layer's cache that one more token reads."""
    seen = tokens if layer.window is None else min(tokens, layer.window)
    if layer.attention == "none":
        return 0.0
    if layer.attention == "mla":
        return seen * layer.key_dim * reading.key_bytes
    return seen * layer.kv_heads * (layer.key_dim * reading.key_bytes + layer.value_dim * reading.value_bytes)


def _states(shape: ModelShape) -> int:
    """Bytes of recurrent states that one token reads and writes."""
    if (r := shape.recurrent) is None:
        return 0
    one = r.conv_rows * r.conv_channels + r.state_elements
    return 2 * r.state_dtype_bytes * one * sum(layer.recurrent for layer in shape.layers)
