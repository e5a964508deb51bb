"""The run's lock: one trainer a run, freed by the kernel however that trainer dies.

It is a POSIX record lock (`fcntl.lockf`): children do not inherit it, so a forked data worker cannot keep it alive,
and another process can ask who holds it without taking it (F_GETLK).

Hazard: a process loses such a lock as soon as it closes ANY descriptor of that file. The holder therefore opens the
file once and keeps that descriptor until it exits, and `probe_lock` never opens a lock that this process holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from gpuworkbench.errors import RunError, RunLockedError
from gpuworkbench.io.reading import open_regular

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid, padding.
_FLOCK = struct.Struct("@hhqqi4x")
UNKNOWN_PID = 0  # held, but by a process of another container, whose pid means nothing here

_held: set[tuple[int, int]] = set()  # (device, inode) of the locks of this process


class RunLock:
    """The exclusive lock of a run, held until the process ends (`release` is for tests and refused starts)."""

    def __init__(self, path: Path, what: str | None = None) -> None:
        """`path`: the lock file, made if missing. `what` names the locked thing in messages (default: the run)."""
        self.path = path
        self.what = what or f"run {path.parent.name}"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock without waiting.

        Raises RunLockedError with the holder's pid, RunError where the lock file cannot be opened.
        """
        if self._fd is not None:
            return
        if (key := _identity(self.path)) is not None and key in _held:
            raise self._locked_by(os.getpid())
        fd = self._open()
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(fd)
            os.close(fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise self._unusable(error) from None
            raise self._locked_by(holder) from None
        key = _key(os.fstat(fd))
        if _identity(self.path) != key:
            os.close(fd)
            raise RunError(f"{self.what} was removed while it was being locked", "start it again")
        _held.add(key)
        self._fd = fd

    def release(self) -> None:
        """Give the lock back."""
        if self._fd is None:
            return
        _held.discard(_key(os.fstat(self._fd)))
        os.close(self._fd)
        self._fd = None

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise self._unusable(error) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise RunError(f"{self.path} is not a regular file", "remove it and try again")
        return fd

    def _unusable(self, error: OSError) -> RunError:
        return RunError(f"{self.path} cannot be locked: {error.strerror}", "check the directory's permissions")

    def _locked_by(self, pid: int | None) -> RunLockedError:
        holder = f"process {pid}" if pid else "another process"
        return RunLockedError(f"{self.what} is locked by {holder}", "attach to it, or stop it first")


def probe_lock(path: Path) -> int | None:
    """Pid of the process that holds the lock, UNKNOWN_PID where it cannot be named, None when the lock is free.

    Never takes the lock. A lock file that is missing or is no regular file is free.
    """
    key = _identity(path)
    if key is None:
        return None
    if key in _held:
        return os.getpid()
    try:
        fd = open_regular(path)
    except OSError:
        return None
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> int | None:
    """F_GETLK: who keeps this process from the exclusive lock, or None."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, wanted)
    except OSError:
        return None
    kind: int
    pid: int
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else max(pid, UNKNOWN_PID)


def _key(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return _key(os.lstat(path))
    except (OSError, ValueError):
        return None
