"""Bounded reads of files that somebody else may have put there.

A run directory can be copied from anywhere: a FIFO in place of a file must not block, a symlink must not lead out
of the directory, and a huge file must not fill the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple


class Tail(NamedTuple):
    """The end of a file."""

    data: bytes
    offset: int  # where `data` begins in the file, in bytes


def open_regular(path: Path, *, follow_symlinks: bool = False) -> int:
    """Open a regular file for reading; returns a descriptor. Raises OSError for symlinks, FIFOs, devices, directories.

    `follow_symlinks` is for paths that a person named; a run directory's files are no symlinks. ValueError for a name
    with a NUL character.
    """
    _require_regular(
        os.stat(path, follow_symlinks=follow_symlinks), path
    )  # opening a device can already have an effect
    # O_NONBLOCK: the name may be a FIFO by now, whose open would wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags if follow_symlinks else flags | os.O_NOFOLLOW)
    try:
        _require_regular(os.fstat(fd), path)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_regular_file(path: Path, max_bytes: int, *, follow_symlinks: bool = False) -> bytes:
    """All of a regular file. Raises OSError (EFBIG where it holds more than `max_bytes`), ValueError as above."""
    with os.fdopen(open_regular(path, follow_symlinks=follow_symlinks), "rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
    return data


def read_tail(path: Path, max_bytes: int) -> Tail:
    """The last `max_bytes` of a regular file, or all of it. Raises OSError."""
    with os.fdopen(open_regular(path), "rb") as stream:
        offset = max(os.fstat(stream.fileno()).st_size - max_bytes, 0)
        stream.seek(offset)
        return Tail(stream.read(max_bytes), offset)


def read_from(path: Path, offset: int, max_bytes: int) -> bytes:
    """At most `max_bytes` from `offset` on. Raises OSError."""
    with os.fdopen(open_regular(path), "rb") as stream:
        stream.seek(offset)
        return stream.read(max_bytes)


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
