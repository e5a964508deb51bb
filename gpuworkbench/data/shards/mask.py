"""The answer mask: which tokens of a shard are scored as targets, one byte a token (1 scored, 0 not) in a file beside.

A shard without such a file is scored as a whole. The mask of `train.bin` is `train.mask`; it has no header: its size
is the shard's number of tokens.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpuworkbench.data.location import open_regular
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files
from gpuworkbench.io.files import write_all

SUFFIX = ".mask"
_BLOCK_BYTES = 4 * 1024 * 1024

Mask = npt.NDArray[np.uint8]


def mask_of(shard: Path) -> Path:
    """Where the mask of a shard lies, if it has one."""
    return shard.with_suffix(SUFFIX)


def map_mask(path: Path, n_tokens: int) -> Mask:
    """The mask of `n_tokens` tokens (N,), memory-mapped read-only. Raises DataError."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != n_tokens:
            raise DataError(f"answer mask {path} has {size} bytes, its shard has {n_tokens} tokens: one byte each")
        try:
            return np.memmap(stream, dtype=np.uint8, mode="r", shape=(n_tokens,))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot map answer mask {path}: {error}") from error


def scan_mask(path: Path, n_tokens: int) -> str:
    """Check every byte; returns their sha256. DataError names the first that is neither 0 nor 1."""
    mask = map_mask(path, n_tokens)
    digest = hashlib.sha256()
    for start in range(0, n_tokens, _BLOCK_BYTES):
        block = np.asarray(mask[start : start + _BLOCK_BYTES])
        if int(block.max()) > 1:
            place = start + int(np.argmax(block > 1))
            raise DataError(f"answer mask {path} holds {int(mask[place])} at position {place}, not 0 or 1")
        digest.update(block.data)
    return digest.hexdigest()


class MaskWriter:
    """Writes one mask through the file layer. Use as a context manager; `finish()` makes it durable. Raises OSError."""

    def __init__(
        self, path: Path, n_scored_before: int, files: Files = REAL_FILES, *, digest: hashlib._Hash | None = None
    ) -> None:
        """The shard's first `n_scored_before` tokens are scored: they were written before a mask was needed.

        With `digest`, goes on with an unfinished mask after so many tokens instead; it is then their marks' sha256.
        """
        self.path = path
        self._files = files
        self._digest = digest or hashlib.sha256()
        self._fd = files.open_write(path) if digest is None else files.open_update(path)
        try:
            if digest is not None:
                files.truncate(self._fd, n_scored_before)
                os.lseek(self._fd, n_scored_before, os.SEEK_SET)
                return
            for start in range(0, n_scored_before, _BLOCK_BYTES):
                self.append(np.ones(min(_BLOCK_BYTES, n_scored_before - start), dtype=np.bool_))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> MaskWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def append(self, scored: npt.NDArray[np.bool_]) -> None:
        """Append the marks (N,) of the next N tokens."""
        data = np.ascontiguousarray(scored, dtype=np.bool_).view(np.uint8).data
        if data:
            self._digest.update(data)
            write_all(self._files, self._fd, data)

    def save(self) -> str:
        """fsync what was appended; returns its sha256."""
        self._files.fsync(self._fd)
        return self._digest.hexdigest()

    def finish(self) -> str:
        """fsync, close; returns the sha256 of the mask's bytes."""
        self._files.fsync(self._fd)
        fd, self._fd = self._fd, -1
        self._files.close(fd)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close without finishing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
