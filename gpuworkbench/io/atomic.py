"""Atomic, durable replacement of files and commit of whole directories.

The order is the one that survives power loss: write to a temporary name, fsync the file, rename, fsync the
parent directory. Whoever sees the final name sees complete content.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from gpuworkbench.io.files import REAL_FILES, Files, remove_tree, write_all

TEMPORARY_PREFIX = ".tmp-"


def temporary_path(path: Path) -> Path:
    """A hidden sibling of `path` that no reader looks at; unique to this process."""
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")


def write_durable(path: Path, data: bytes | memoryview, files: Files = REAL_FILES) -> None:
    """Write a new file and fsync it (not its directory). A failed write leaves no descriptor behind."""
    fd = files.open_write(path)
    try:
        write_all(files, fd, data)
        files.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    files.close(fd)


def atomic_write_bytes(path: Path, data: bytes, files: Files = REAL_FILES, *, durable: bool = True) -> None:
    """Replace `path` by `data`: readers see the old content or the new, never a part.

    `durable=False` skips the fsyncs, for what need not outlive a power cut (the heartbeat).
    Raises OSError. Before the rename the temporary file is removed and the old content stays; where only the last
    fsync (of the directory) fails, the new content is visible but may be lost with the power.
    """
    temporary = temporary_path(path)
    try:
        if durable:
            write_durable(temporary, data, files)
        else:
            fd = files.open_write(temporary)
            try:
                write_all(files, fd, data)
            finally:
                files.close(fd)
        files.rename(temporary, path)
    except BaseException:
        _unlink_quietly(temporary, files)
        raise
    if durable:
        files.fsync_directory(path.parent)


def atomic_write_json(path: Path, value: Any, files: Files = REAL_FILES, *, durable: bool = True) -> None:
    """`atomic_write_bytes` of `value` as indented JSON."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    atomic_write_bytes(path, data, files, durable=durable)


def commit_directory(temporary: Path, final: Path, files: Files = REAL_FILES) -> None:
    """Give a directory whose files are already fsynced its final name, durably.

    Raises OSError; `temporary` is then left for the caller to remove with `discard_directory`.
    """
    files.fsync_directory(temporary)
    files.rename(temporary, final)
    files.fsync_directory(final.parent)


def make_directories(path: Path, files: Files = REAL_FILES) -> None:
    """Make `path` and its missing parents, each name durable; one that is there already is fine. Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for directory in reversed(missing):
        try:
            files.mkdir(directory)
        except FileExistsError:
            if not directory.is_dir():
                raise
        files.fsync_directory(directory.parent)


def discard_directory(path: Path, files: Files = REAL_FILES) -> None:
    """Remove a directory that was never committed; what cannot be removed is left for the next clean-up."""
    try:
        remove_tree(files, path)
    except OSError:
        return


def discard_leftovers(parent: Path, files: Files = REAL_FILES) -> int:
    """Remove the temporary files and directories that killed processes left in `parent`; returns how many went.

    Only for the owner of `parent` (the holder of the run's lock): a living writer's temporary would go too.
    """
    try:
        names = [name for name in os.listdir(parent) if name.startswith(TEMPORARY_PREFIX)]
    except OSError:
        return 0
    for name in names:
        path = parent / name
        if path.is_dir() and not path.is_symlink():
            discard_directory(path, files)
        else:
            _unlink_quietly(path, files)
    return sum(not os.path.lexists(parent / name) for name in names)


def append_line(files: Files, fd: int, line: bytes) -> None:
    """Append one line with one write(2) where the kernel takes it whole, the rest in further ones."""
    write_all(files, fd, line)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unlink_quietly(path: Path, files: Files) -> None:
    try:
        files.unlink(path)
    except OSError:
        return
