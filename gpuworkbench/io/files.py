"""The system calls the product writes with, as an object, so that tests can put a failing twin in its place."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class Files:
    """The real file system. Each method is one operation that can fail with an OSError.

    `tests/fixtures/faulty_files.py` subclasses this: it counts operations, fails the n-th with a chosen errno, or
    "cuts the power" after it.
    """

    def open_write(self, path: Path) -> int:
        """Create or truncate `path` for writing; returns a descriptor. A symlink in its place is refused."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)

    def open_append(self, path: Path) -> int:
        """Open `path` for appending, created where missing; returns a descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)

    def open_update(self, path: Path) -> int:
        """Open an existing `path` for writing, its content as it is; returns a descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def truncate(self, fd: int, size: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(fd, size)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """One write(2); may write less than all of `data`."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """fsync(2). A failed fsync is never retried on the same descriptor: the kernel may have dropped the pages."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def fsync_directory(self, path: Path) -> None:
        """Make the names in directory `path` durable, where the file system can (9p and some others cannot)."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(fd)

    def mkdir(self, path: Path) -> None:
        """mkdir(2)."""
        os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        """rename(2): atomic, replaces a file (or an empty directory) at `target`."""
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """link(2): a second name; FileExistsError where `target` exists, unlike rename."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """unlink(2)."""
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        """rmdir(2)."""
        os.rmdir(path)


REAL_FILES = Files()


def write_all(files: Files, fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`, however many write(2) calls that takes."""
    view = memoryview(data).cast("B")
    while view:
        written = files.write(fd, view[: 64 * 1024 * 1024])
        if written <= 0:
            raise OSError(f"write returned {written}")
        view = view[written:]


def remove_tree(files: Files, path: Path) -> None:
    """Remove a directory and what is in it. Symlinks are removed, never followed, `path` itself included."""
    if path.is_symlink():
        files.unlink(path)
        return
    with os.scandir(path) as scan:
        entries = list(scan)
    for entry in entries:
        child = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            remove_tree(files, child)
        else:
            files.unlink(child)
    files.rmdir(path)
