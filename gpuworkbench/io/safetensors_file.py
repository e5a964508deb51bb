"""Streaming writer of the safetensors format, through the file layer.

The format (huggingface/safetensors, "Format" in its README): 8 bytes little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}}, then the tensors' bytes back to back. The safetensors library reads these
files; writing goes through `Files` instead, so that every failing system call can be tested and no second copy of
the state is built in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpuworkbench.io.files import REAL_FILES, Files, write_all

_ALIGNMENT = 8  # the header is padded with spaces so that tensor data starts aligned
_SLICE_BYTES = 16 * 1024 * 1024


class TensorSpec(NamedTuple):
    """What the header says of a tensor; `dtype` in safetensors' spelling (F32, BF16, I64, U8, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class TensorRecord(NamedTuple):
    """One tensor to write, with its raw bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def header_of(specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """The length-prefixed, padded JSON header of a file that holds these tensors in this order."""
    entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for spec in specs:
        end = offset + spec.num_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (offset, end)}
        offset = end
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, records: Sequence[TensorRecord], files: Files = REAL_FILES) -> int:
    """Write and fsync a new file; returns its size in bytes. Raises OSError: the caller discards the directory."""
    specs = [TensorSpec(record.name, record.dtype, record.shape, record.data.nbytes) for record in records]
    return stream_safetensors(path, specs, (record.data for record in records), files)


def stream_safetensors(
    path: Path,
    specs: Sequence[TensorSpec],
    parts: Iterable[memoryview],
    files: Files = REAL_FILES,
    *,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """`write_safetensors` of tensors whose bytes come one by one from `parts`, in the order of `specs`."""
    header = header_of(specs, metadata)
    fd = files.open_write(path)
    try:
        _write_part(files, fd, memoryview(header))
        for spec, part in zip(specs, parts, strict=True):
            if part.nbytes != spec.num_bytes:
                raise ValueError(f"{spec.name} has {part.nbytes} bytes, announced were {spec.num_bytes}")
            _write_part(files, fd, part)
            del part  # before the next one is made
        files.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    files.close(fd)
    return len(header) + sum(spec.num_bytes for spec in specs)


def _write_part(files: Files, fd: int, part: memoryview) -> None:
    for start in range(0, part.nbytes, _SLICE_BYTES):
        write_all(files, fd, part[start : start + _SLICE_BYTES])
