from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import gguf
from tests.agent import gguf_file as write


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    agent = Path(gguf.__file__).parent
    done = subprocess.run(
        [sys.executable, "-I", str(agent), "gguf", *arguments], capture_output=True, check=False
    )
    return done.returncode, json.loads(done.stdout)


def test_a_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(write.small())
    document = gguf.document(str(file))
    assert document["file_bytes"] == file.stat().st_size
    assert document["metadata"] == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.rope.freq_base": None,
        "llama.attention.head_count_kv": [8, 4],
        "llama.sliding": [True, False],
        "tokenizer.ggml.tokens": {"type": "array", "length": 300},
        "tokenizer.ggml.token_type": {"type": "array", "length": 3000},
    }
    assert document["tensors"] == [
        ["token_embd.weight", [256, 10], "Q4_K", 1440],
        ["output_norm.weight", [256], "F32", 1024],
        ["blk.0.ffn_gate_exps.weight", [64, 2, 3], "MXFP4", 204],
    ]


def test_the_beginning_of_a_file_is_enough_when_its_size_is_given(tmp_path: Path) -> None:
    whole = write.small()
    file = tmp_path / "head.gguf"
    file.write_bytes(whole[: -write.TENSOR_BYTES])
    status, document = run(str(file), "--size", str(len(whole)))
    assert status == 0
    assert document["file_bytes"] == len(whole)
    assert len(document["tensors"]) == 3
    status, document = run(str(file))
    assert status == gguf.INVALID_STATUS
    assert "ends at byte" in document["error"]


def wanted(file: Path, size: int) -> int | None:
    try:
        gguf.header(str(file), size)
    except gguf.TruncatedError as e:
        return e.need_bytes
    return None


def test_a_beginning_that_is_too_short_says_how_much_it_needs(tmp_path: Path) -> None:
    """Fetching what it asks for again and again ends with the whole header, never beyond it."""
    whole = write.small()
    header = len(write.header(write.PAIRS, write.TENSORS))
    file = tmp_path / "m.gguf"
    have = 10
    while True:
        file.write_bytes(whole[:have])
        need = wanted(file, len(whole))
        if need is None:
            break
        assert have < need <= header
        have = need
    file.write_bytes(whole[:100])
    status, answer = run(str(file), "--size", str(len(whole)))
    assert status == gguf.TRUNCATED_STATUS
    assert 100 < answer["need_bytes"] <= header


def test_parts_of_a_split_file_are_joined(tmp_path: Path) -> None:
    for i, name in enumerate(("token_embd.weight", "output.weight")):
        head = write.header(write.PAIRS[:2] if i == 0 else (), [write.tensor(name, [256, 2], write.F32, 0)])
        (tmp_path / f"m-{i + 1:05d}-of-00002.gguf").write_bytes(write.padded(head) + bytes(2048))
    document = gguf.document(str(tmp_path / "m-00002-of-00002.gguf"))
    assert [t[0] for t in document["tensors"]] == ["token_embd.weight", "output.weight"]
    assert document["metadata"]["llama.block_count"] == 2
    assert (
        document["file_bytes"]
        == sum(size for _, size in document["files"])
        == sum(f.stat().st_size for f in tmp_path.iterdir())
    )
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(gguf.HeaderError, match=r"part missing: m-00001-of-00002\.gguf"):
        gguf.document(str(tmp_path / "m-00002-of-00002.gguf"))


def test_a_tensor_type_from_the_future_is_measured_by_its_neighbour() -> None:
    head = write.header((), [write.tensor("a", [64], 999, 0), write.tensor("b", [8], write.F32, 96)])
    size = len(write.padded(head)) + 96 + 32
    assert gguf.parse(head, size)["tensors"] == [["a", [64], "type-999", 96], ["b", [8], "F32", 32]]


HUGE = (1 << 63) - 1
HOSTILE = {
    "not gguf": b"PK\3\4" + bytes(100),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "a version of the future": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "too many tensors": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
    "too many pairs": b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
    "a string longer than the file": write.header([struct.pack("<Q", HUGE) + b"x"], ()),
    "a text longer than the file": write.header(
        [write.text("k") + struct.pack("<IQ", write.STRING, HUGE)], ()
    ),
    "an array longer than the file": write.header(
        [write.text("k") + struct.pack("<IIQ", write.ARRAY, write.UINT64, HUGE)], ()
    ),
    "an array of endless strings": write.header(
        [write.text("k") + struct.pack("<IIQ", write.ARRAY, write.STRING, HUGE)], ()
    ),
    "arrays in arrays": write.header(
        [write.text("k") + struct.pack("<IIQ", write.ARRAY, write.ARRAY, 1) * 3], ()
    ),
    "an unknown metadata type": write.header([write.text("k") + struct.pack("<I", 77)], ()),
    "no dimensions": write.header((), [write.tensor("t", [], write.F32, 0)]),
    "many dimensions": write.header((), [write.tensor("t", [1] * 9, write.F32, 0)]),
    "dimensions that overflow": write.header((), [write.tensor("t", [HUGE, HUGE, 4], write.F32, 0)]),
    "an empty dimension": write.header((), [write.tensor("t", [0], write.F32, 0)]),
    "rows that are no blocks": write.header((), [write.tensor("t", [255], write.Q4_K, 0)]),
    "an offset beyond the file": write.header((), [write.tensor("t", [4], write.F32, HUGE)]),
    "an alignment of nought": write.header([write.pair("general.alignment", write.UINT32, 0)], ()),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_in_words(what: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(HOSTILE[what] + bytes(4096))
    with pytest.raises(gguf.HeaderError):
        gguf.document(str(file))


def test_a_vocabulary_that_fills_a_huge_file_takes_bounded_time() -> None:
    head = write.header([write.text("k") + struct.pack("<IIQ", write.ARRAY, write.STRING, 1 << 40)], ())
    started = time.perf_counter()
    with pytest.raises(gguf.HeaderError):
        gguf.parse(head + bytes(1 << 20), 1 << 50)
    assert time.perf_counter() - started < 1


def outcome(data: bytes, size: int) -> None:
    try:
        json.dumps(gguf.parse(data, size), allow_nan=False)
    except (gguf.HeaderError, gguf.TruncatedError):
        pass


@settings(max_examples=300, deadline=1000)
@given(st.binary(max_size=400), st.integers(0, 1 << 50))
def test_any_bytes_end_in_a_document_or_our_error(tail: bytes, size: int) -> None:
    outcome(b"GGUF\3\0\0\0" + tail, max(size, len(tail) + 8))


@settings(max_examples=300, deadline=1000)
@given(st.data())
def test_any_damage_to_a_good_file_ends_in_a_document_or_our_error(data: st.DataObject) -> None:
    whole = bytearray(write.small())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    outcome(bytes(whole[:cut]), len(whole))
