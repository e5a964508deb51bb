"""Text files as byte streams, `.gz` ones decompressed on the way. Every position is one in the decompressed bytes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from gpuworkbench.data.location import open_regular, unreadable

READ_ERRORS = (OSError, EOFError, zlib.error)  # what reading from `open_data` raises for a bad disk or a damaged file
SUFFIX = ".gz"
_TYPICAL_RATIO = 4  # of text; for estimates only
_BLOCK_BYTES = 1024 * 1024
_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
}


def is_compressed(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix.lower() == SUFFIX


def name_within(path: Path) -> str:
    """The file's name in lower case, as it would be decompressed."""
    return path.name.lower().removesuffix(SUFFIX)


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, decompressed. DataError where that fails, READ_ERRORS from reading it."""
    with open_regular(path) as stream:
        if not is_compressed(path):
            yield stream
            return
        with gzip.GzipFile(fileobj=stream, mode="rb") as decompressed:
            yield cast(BinaryIO, decompressed)


def read_head(path: Path, n_bytes: int) -> bytes:
    """The first bytes, decompressed. Raises DataError."""
    try:
        with open_data(path) as stream:
            return stream.read(n_bytes)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def decompressed_bytes(path: Path, size_bytes: int) -> int:
    """The exact size of the decompressed content: a `.gz` file is read once. Raises DataError."""
    if not is_compressed(path):
        return size_bytes
    try:
        with open_data(path) as stream:
            return sum(len(block) for block in iter(lambda: stream.read(_BLOCK_BYTES), b""))
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def estimated_bytes(path: Path, size_bytes: int) -> int:
    """About how much text a file of that size holds."""
    return size_bytes * _TYPICAL_RATIO if is_compressed(path) else size_bytes


def format_of(head: bytes) -> str | None:
    """The name of a compressed (or column) format that a file's first bytes show, None for anything else."""
    return next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)
