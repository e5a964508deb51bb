"""Our streaming writer and reader of safetensors against the library's, and headers that lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpuworkbench.io.safetensors_file import TensorSpec, stream_safetensors
from gpuworkbench.io.safetensors_reader import SafetensorsReader

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.arange(5, dtype=np.int64),
    "ünïcode": np.ones((1, 1, 4), dtype=np.float16),
    "scalar": np.array(3.0, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
}
NAMES = {"float32": "F32", "int64": "I64", "float16": "F16"}


def write(path: Path, metadata: dict[str, str] | None = None) -> int:
    specs = [TensorSpec(name, NAMES[str(a.dtype)], a.shape, a.nbytes) for name, a in ARRAYS.items()]
    parts = (memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(b"") for array in ARRAYS.values())
    return stream_safetensors(path, specs, parts, metadata=metadata)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_library_reads_what_is_streamed(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "a.safetensors"
    assert write(path, metadata) == path.stat().st_size
    found = load_file(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_what_the_library_wrote_is_read_in_the_order_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    with SafetensorsReader(path) as reader:
        assert [tensor.start for tensor in reader.tensors] == sorted(tensor.start for tensor in reader.tensors)
        assert {tensor.name: tensor.shape for tensor in reader.tensors} == {n: a.shape for n, a in ARRAYS.items()}
        content = reader.header
        for tensor in reader.tensors:
            buffer = bytearray(tensor.num_bytes)
            reader.read_into(tensor, memoryview(buffer))
            assert bytes(buffer) == ARRAYS[tensor.name].tobytes()
            content += bytes(buffer)
        assert content == path.read_bytes()  # so that the digest of the parts is the file's


def test_a_part_of_another_size_than_announced_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced were 8"):
        stream_safetensors(tmp_path / "a", [TensorSpec("a", "F32", (2,), 8)], [memoryview(b"1234")])


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "empty": b"",
    "short": b"1234567",
    "header beyond the end": raw({}, length=99),
    "header of 2**64 - 1": raw({}, length=2**64 - 1),
    "no JSON": raw(b"{" * 9),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "list": raw([]),
    "deep": raw(b"[" * 10_000),
    "truncated": raw({"a": GOOD}, b"1234567"),
    "longer": raw({"a": GOOD}, b"123456789"),
    "gap": raw({"a": {**GOOD, "data_offsets": [4, 12]}}, b"0" * 12),
    "overlap": raw({"a": GOOD, "b": GOOD}, b"0" * 8),
    "backwards": raw({"a": {**GOOD, "data_offsets": [8, 0]}}, b"0" * 8),
    "negative": raw({"a": {**GOOD, "data_offsets": [-8, 0]}}, b"0" * 8),
    "other size than its shape": raw({"a": {**GOOD, "shape": [3]}}, b"0" * 8),
    "shape that overflows": raw({"a": {**GOOD, "shape": [2**62, 2**62]}}, b"0" * 8),
    "unknown type": raw({"a": {**GOOD, "dtype": "F33"}}, b"0" * 8),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [2]}}, b"0" * 8),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_files_that_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=r"safetensors|header|size"):
        SafetensorsReader(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_became_shorter_is_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw({"a": GOOD}, b"12345678"))
    with SafetensorsReader(path) as reader:
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(OSError, match="became shorter"):
            reader.read_into(reader.tensors[0], memoryview(bytearray(8)))
