"""Preparations that go on where they were killed: a working folder with a name, and a record of what is in it.

The folder is `.partial-NAME` beside the directory that it will become. Its owner holds a lock on the folder itself;
a killed owner's lock is gone, and the next one goes on from `progress.json`, which names only what is on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from gpuworkbench.data.encoding import Progress
from gpuworkbench.data.meta import FORMAT
from gpuworkbench.data.shards.split_writer import SplitState, SplitWriter
from gpuworkbench.data.split import Split
from gpuworkbench.data.tokenization.tokenizer import Tokenizer
from gpuworkbench.io import REAL_FILES, Files, atomic_write_json, discard_directory
from gpuworkbench.io.atomic import temporary_path

PREFIX = ".partial-"
FILE_NAME = "progress.json"
_LOCK_WAIT_S = 1800.0


class StaleProgressError(Exception):
    """What an interrupted preparation left does not belong to the text as it is now: start from the beginning."""


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """progress.json: so many batches of text are encoded, and their tokens are on the disk."""

    format: int
    key: str  # of what was asked for
    n_batches: int
    n_bytes: int  # of text
    chain: str  # hash of the text of these batches
    tokenizer_sha256: str
    splits: dict[Split, SplitState]
    checksum: str = ""  # of all the other fields

    @classmethod
    def of(
        cls,
        key: str,
        *,
        n_batches: int,
        n_bytes: int,
        chain: bytes,
        tokenizer: Tokenizer,
        writers: Mapping[Split, SplitWriter],
    ) -> Saved:
        """What the writers hold, once they have made it durable. Raises OSError."""
        return cls(
            format=FORMAT,
            key=key,
            n_batches=n_batches,
            n_bytes=n_bytes,
            chain=chain.hex(),
            tokenizer_sha256=tokenizer.sha256,
            splits={split: writer.save() for split, writer in writers.items()},
        )

    def sealed(self) -> Saved:
        """The same with its checksum."""
        blank = msgspec.structs.replace(self, checksum="")
        return msgspec.structs.replace(blank, checksum=hashlib.sha256(msgspec.json.encode(blank)).hexdigest())


class Journal:
    """The record in a working folder. One that was made for another `key` counts for nothing."""

    def __init__(self, directory: Path, key: str, files: Files = REAL_FILES) -> None:
        self.directory = directory
        self.key = key
        saved = _load(directory)
        self.saved = saved if saved is not None and saved.key == key else None
        self._files = files

    def save(self, saved: Saved) -> None:
        """Replace the record; what it names must be durable. Raises OSError."""
        self._files.fsync_directory(self.directory)
        atomic_write_json(self.directory / FILE_NAME, saved.sealed(), self._files)
        self.saved = saved

    def start_over(self) -> None:
        """Empty the folder. Raises OSError."""
        self.saved = None
        for entry in list(os.scandir(self.directory)):
            if entry.is_dir(follow_symlinks=False):
                discard_directory(Path(entry.path), self._files)
            else:
                self._files.unlink(Path(entry.path))


def _load(directory: Path) -> Saved | None:
    try:
        saved = msgspec.json.decode((directory / FILE_NAME).read_bytes(), type=Saved)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    return saved if saved.format == FORMAT and saved == saved.sealed() else None


def is_resumable(folder: Path) -> bool:
    """Whether a preparation that finds this folder goes on with what is in it."""
    saved = _load(folder)
    return folder.name.startswith(PREFIX) and saved is not None and saved.n_batches > 0


@contextmanager
def working_folder(home: Path, on_progress: Progress, files: Files = REAL_FILES) -> Iterator[Path]:
    """The folder that will become `home`, for this process (and thread) alone; waits for another that works on it.

    Where the file system has no locks it is a temporary one that nobody goes on with. Left as it is: whoever does not
    rename it keeps or discards it. Raises OSError.
    """
    folder = home.with_name(f"{PREFIX}{home.name}")
    fd = _locked(folder, on_progress, files)
    if fd is None:
        folder = temporary_path(home)
        if folder.exists():
            discard_directory(folder, files)
        files.mkdir(folder)
    try:
        yield folder
    finally:
        if fd is not None:
            os.close(fd)


def _locked(folder: Path, on_progress: Progress, files: Files) -> int | None:
    """A descriptor of the folder, made if missing, that holds its lock; None where that cannot be had."""
    deadline, told = time.monotonic() + _LOCK_WAIT_S, False
    while time.monotonic() < deadline:
        with suppress(FileExistsError):
            files.mkdir(folder)
            files.fsync_directory(folder.parent)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # it has just become the directory
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(folder)):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if not told:
                on_progress("waiting for another process that prepares the same data", None)
                told = True
            time.sleep(0.05)
        except OSError:
            os.close(fd)
            return None
        os.close(fd)
    return None
