"""Streaming writer of the safetensors format, through the file layer.

The format (huggingface/safetensors, "Format" in its README): 8 bytes little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}}, then the tensors' bytes back to back. The safetensors library reads these
files; writing goes through `Files` instead, so that every failing system call can be tested and no second copy of
the state is built in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpuworkbench.io.files import REAL_FILES, Files, write_all

_ALIGNMENT = 8  # the header is padded with spaces so that tensor data starts aligned
_SLICE_BYTES = 16 * 1024 * 1024


class TensorRecord(NamedTuple):
    """One tensor to write: `dtype` in safetensors' spelling (F32, BF16, I64, U8, ...), `data` its raw bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def header_of(records: Sequence[TensorRecord]) -> bytes:
    """The length-prefixed, padded JSON header."""
    entries: dict[str, object] = {}
    offset = 0
    for record in records:
        end = offset + record.data.nbytes
        entries[record.name] = {"dtype": record.dtype, "shape": record.shape, "data_offsets": (offset, end)}
        offset = end
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, records: Sequence[TensorRecord], files: Files = REAL_FILES) -> int:
    """Write and fsync a new file; returns its size in bytes. Raises OSError: the caller discards the directory."""
    total = 0
    fd = files.open_write(path)
    try:
        for part in (memoryview(header_of(records)), *(record.data for record in records)):
            for start in range(0, part.nbytes, _SLICE_BYTES):
                write_all(files, fd, part[start : start + _SLICE_BYTES])
            total += part.nbytes
        files.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    files.close(fd)
    return total
