"""Token shards: a header of 256 little-endian int32 (magic, version, count), then the tokens.

Two variants are in use: magic 20240520 version 1 with uint16 tokens (GPT-2 sized vocabularies) and magic 20240801
version 7 with uint32 tokens (larger ones). Shards are memory-mapped where they lie, never copied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpuworkbench.data.location import open_regular
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files
from gpuworkbench.io.files import write_all

HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4
_SCAN_TOKENS = 4 * 1024 * 1024


class Variant(NamedTuple):
    """One of the two layouts."""

    magic: int
    version: int
    dtype: str


UINT16 = Variant(20240520, 1, "<u2")
UINT32 = Variant(20240801, 7, "<u4")
VARIANTS = (UINT16, UINT32)


def variant_for(vocab_size: int) -> Variant:
    """The smallest layout that holds every id below `vocab_size`."""
    return UINT16 if vocab_size <= 2**16 else UINT32


def map_shard(path: Path) -> npt.NDArray[np.generic]:
    """The tokens of a shard (N,), memory-mapped read-only, after its header and size were checked. Raises DataError."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(HEADER_BYTES)
        variant, count = _parse_header(path, head, size)
        try:
            return np.memmap(stream, dtype=variant.dtype, mode="r", offset=HEADER_BYTES, shape=(count,))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot map token shard {path}: {error}") from error


def _parse_header(path: Path, head: bytes, size: int) -> tuple[Variant, int]:
    if size == 0:
        raise DataError(f"token shard {path} is empty")
    if len(head) < HEADER_BYTES:
        raise DataError(f"token shard {path} has {size} bytes, its header alone needs {HEADER_BYTES}")
    magic, version, count = (int(value) for value in np.frombuffer(head, dtype="<i4", count=3))
    variant = next((each for each in VARIANTS if each.magic == magic), None)
    if variant is None:
        known = " or ".join(str(each.magic) for each in VARIANTS)
        raise DataError(f"token shard {path} has magic {magic}, not {known}", "is it a shard with a header?")
    if version != variant.version:
        raise DataError(f"token shard {path} has version {version}, magic {magic} needs version {variant.version}")
    if count < 1:
        raise DataError(f"token shard {path} says it holds {count} tokens, it must hold at least 1")
    expected = HEADER_BYTES + count * np.dtype(variant.dtype).itemsize
    if size != expected:
        raise DataError(f"token shard {path} has {size} bytes, its header's {count} tokens need {expected}")
    return variant, count


class ShardScan(NamedTuple):
    """What one pass over a shard's tokens found."""

    n_tokens: int
    sha256: str  # of the token bytes, without the header
    n_documents: int  # end-of-text tokens


def scan_shard(
    path: Path, *, vocab_size: int, eot_id: int, on_tokens: Callable[[int], None] | None = None
) -> ShardScan:
    """Check every token against `vocab_size`, hash them, count documents. DataError names token, place and size."""
    tokens = map_shard(path)
    digest, n_documents = hashlib.sha256(), 0
    for start in range(0, len(tokens), _SCAN_TOKENS):
        block = np.asarray(tokens[start : start + _SCAN_TOKENS])
        if int(block.max()) >= vocab_size:
            place = start + int(np.argmax(block >= vocab_size))
            raise DataError(
                f"token shard {path} holds token {int(tokens[place])} at position {place}, "
                f"the tokenizer has {vocab_size} tokens",
                "set data.tokenizer to the one the shards were made with",
            )
        digest.update(block.view(np.uint8).data)
        n_documents += int(np.count_nonzero(block == eot_id))
        if on_tokens is not None:
            on_tokens(len(block))
    return ShardScan(len(tokens), digest.hexdigest(), n_documents)


class ShardWriter:
    """Writes one shard through the file layer. The header, with the count, is written last.

    Use as a context manager; `finish()` makes the file durable. Raises OSError.
    """

    def __init__(self, path: Path, variant: Variant, files: Files = REAL_FILES) -> None:
        self.path = path
        self.n_tokens = 0
        self._variant = variant
        self._files = files
        self._digest = hashlib.sha256()
        self._fd = files.open_write(path)
        try:
            write_all(files, self._fd, bytes(HEADER_BYTES))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def append(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append tokens (N,); ids must be below the vocabulary size that chose the variant."""
        data = np.ascontiguousarray(tokens, dtype=self._variant.dtype).view(np.uint8).data
        if not data:
            return
        self._digest.update(data)
        write_all(self._files, self._fd, data)
        self.n_tokens += len(tokens)

    def finish(self) -> str:
        """Write the header, fsync, close; returns the sha256 of the token bytes."""
        header = np.zeros(HEADER_INTS, dtype="<i4")
        header[:3] = (self._variant.magic, self._variant.version, self.n_tokens)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._files, self._fd, header.tobytes())
        self._files.fsync(self._fd)
        fd, self._fd = self._fd, -1
        self._files.close(fd)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close without finishing; the file is then not a valid shard."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
