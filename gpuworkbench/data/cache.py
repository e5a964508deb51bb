"""Prepared directories in the user's cache: found whole or not at all, built by one process at a time.

A directory is built under a temporary name and renamed, so a reader never sees a part of one. The lock only saves
work: without it two processes would do the same twice, and both results would be right.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np

from gpuworkbench.data.encoding import Progress
from gpuworkbench.data.mask import map_mask
from gpuworkbench.data.meta import FILE_NAME, FORMAT, Meta, Part
from gpuworkbench.data.prepared import TOKENIZER_FOLDER, PreparedData
from gpuworkbench.data.shards import map_shard
from gpuworkbench.data.tokenizer import load_tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_json, commit_directory
from gpuworkbench.io.atomic import TEMPORARY_PREFIX, discard_directory, temporary_path

VERIFY_LIMIT_BYTES = 256 * 1024 * 1024  # larger files are checked by size and header only
_STALE_S = 24 * 3600.0
_LOCK_WAIT_S = 1800.0


def find(home: Path) -> PreparedData | None:
    """The prepared directory `home`, None where it is absent, damaged or of another format."""
    try:
        content = (home / FILE_NAME).read_bytes()
        meta = msgspec.json.decode(content, type=Meta)
        if meta.format != FORMAT or meta != meta.sealed():
            return None
        if load_tokenizer(home / TOKENIZER_FOLDER).sha256 != meta.tokenizer_sha256:
            return None
        intact = all(_is_intact(home, part) for part in (*meta.train, *meta.val))
    except (OSError, msgspec.MsgspecError, ValueError, DataError):
        return None
    return PreparedData.from_meta(home, meta) if intact else None


def _is_intact(home: Path, part: Part) -> bool:
    path = home / part.path
    tokens = map_shard(path, part.raw_dtype)
    if path.stat().st_size != part.size_bytes or len(tokens) != part.n_tokens:
        return False
    mask = map_mask(home / part.mask, part.n_tokens) if part.mask else None
    if os.path.isabs(part.path) or part.size_bytes > VERIFY_LIMIT_BYTES:
        return True  # shards in place: their sizes and times are in the directory's key
    if mask is not None and hashlib.sha256(np.asarray(mask).data).hexdigest() != part.mask_sha256:
        return False
    return hashlib.sha256(np.asarray(tokens).view(np.uint8).data).hexdigest() == part.sha256


def build(home: Path, fill: Callable[[Path], Meta], files: Files = REAL_FILES) -> PreparedData:
    """Let `fill` write shards and tokenizer into a temporary directory, add meta.json, and commit it as `home`.

    Raises DataError when the cache cannot be written; nothing half-made is left under `home`.
    """
    temporary = temporary_path(home)
    try:
        _sweep(home.parent, files)
        if temporary.exists():
            discard_directory(temporary, files)
        files.mkdir(temporary)
        meta = fill(temporary).sealed()
        atomic_write_json(temporary / FILE_NAME, meta, files)
        return _commit(temporary, home, meta, files)
    except OSError as error:
        raise cannot_write(home.parent, error) from error
    finally:
        if temporary.exists():
            discard_directory(temporary, files)


def _commit(temporary: Path, home: Path, meta: Meta, files: Files) -> PreparedData:
    if home.exists():
        if (theirs := find(home)) is not None:
            return theirs
        damaged = temporary.with_name(f"{temporary.name}-damaged")
        files.rename(home, damaged)
        discard_directory(damaged, files)
    try:
        commit_directory(temporary, home, files)
    except OSError:
        if (theirs := find(home)) is None:
            raise
        return theirs
    return PreparedData.from_meta(home, meta)


def cannot_write(folder: Path, error: OSError) -> DataError:
    """The one-line form of a failure to write the cache."""
    return DataError(
        f"cannot write the data cache at {folder}: {error.strerror or error}",
        "free space there, or set GPUWORKBENCH_CACHE_DIR to another folder",
    )


@contextmanager
def exclusive(lock: Path, on_progress: Progress) -> Iterator[None]:
    """Hold `lock` while preparing; wait for another process (or thread) that does. Goes on without where it cannot."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        _wait_for(fd, on_progress)
        yield
    finally:
        os.close(fd)


def _wait_for(fd: int, on_progress: Progress) -> None:
    deadline, told = time.monotonic() + _LOCK_WAIT_S, False
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                on_progress("waiting for another process that prepares the same data", None)
                told = True
            time.sleep(0.05)
        except OSError:
            return  # a file system without locks


def _sweep(folder: Path, files: Files) -> None:
    """Remove what killed preparations left behind long ago."""
    for entry in os.scandir(folder):
        if not (entry.name.startswith(TEMPORARY_PREFIX) and entry.is_dir(follow_symlinks=False)):
            continue
        with suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S:
                discard_directory(Path(entry.path), files)
