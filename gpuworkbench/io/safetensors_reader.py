"""Reading safetensors files one tensor at a time, by position, so that no more of a file is in memory than that tensor.

The library checks the header (offsets within the file and without gaps, sizes that match shapes); a mapping of the
whole file, as its own reader makes one, would count as memory of the process.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpuworkbench.io.reading import open_regular

MAX_HEADER_BYTES = 100_000_000  # the limit of the format


class StoredTensor(NamedTuple):
    """One tensor of a file: `dtype` in safetensors' spelling, its bytes from `start` to `stop` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return self.stop - self.start


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class SafetensorsReader:
    """An open file; `tensors` in the order of their bytes. A context manager.

    It stays readable when the file's name goes away meanwhile.
    """

    def __init__(self, path: Path, *, follow_symlinks: bool = False) -> None:
        """Raises OSError where it cannot be opened, ValueError where it is no safetensors file."""
        self.path = path
        self._fd = open_regular(path, follow_symlinks=follow_symlinks)
        try:
            self.num_bytes = os.fstat(self._fd).st_size
            self.header, self.tensors = self._read_header()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def sha256(self) -> str:
        """Hex digest of the whole file. Raises OSError."""
        digest, position = hashlib.sha256(), 0
        while chunk := os.pread(self._fd, 1 << 24, position):
            digest.update(chunk)
            position += len(chunk)
        return digest.hexdigest()

    def read_into(self, tensor: StoredTensor, buffer: memoryview) -> None:
        """Fill `buffer` (of `tensor.num_bytes` bytes). Raises OSError, also where the file became shorter."""
        position = tensor.start
        while buffer:
            count = os.preadv(self._fd, [buffer[: 1 << 30]], position)
            if count == 0:
                raise OSError(0, "the file became shorter while it was read", str(self.path))
            position += count
            buffer = buffer[count:]

    def _read_header(self) -> tuple[bytes, tuple[StoredTensor, ...]]:
        _check_with_library(self.path)
        prefix = os.pread(self._fd, 8, 0)
        if len(prefix) < 8:
            raise ValueError("it is too short for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header is longer than {MAX_HEADER_BYTES} bytes")
        text = os.pread(self._fd, length, 8)
        try:
            raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            entries = {
                name: msgspec.json.decode(part, type=_Entry) for name, part in raw.items() if name != "__metadata__"
            }
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError(f"its header is malformed: {error}") from None
        base = 8 + length
        tensors = (
            StoredTensor(name, entry.dtype, entry.shape, base + entry.data_offsets[0], base + entry.data_offsets[1])
            for name, entry in entries.items()
        )
        ordered = tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)))
        if (ordered[-1].stop if ordered else base) != self.num_bytes:
            raise ValueError("its size is not what its header says")
        return prefix + text, ordered


def _check_with_library(path: Path) -> None:
    """ValueError for what the safetensors library refuses."""
    from safetensors import SafetensorError, safe_open  # loaded when weights are really read

    try:
        with safe_open(str(path), framework="numpy"):
            return
    except SafetensorError as error:
        raise ValueError(f"it is no intact safetensors file: {error}") from None
