"""Prepared directories in the user's cache: found whole or not at all, built by one process at a time.

A directory is built in a working folder (see `partial`) and renamed, so a reader never sees a part of one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from gpuworkbench.data import partial
from gpuworkbench.data.encoding import Progress
from gpuworkbench.data.meta import FILE_NAME, FORMAT, Meta, Part
from gpuworkbench.data.partial import is_resumable, working_folder
from gpuworkbench.data.prepared import TOKENIZER_FOLDER, PreparedData
from gpuworkbench.data.shards.mask import map_mask
from gpuworkbench.data.shards.shard_file import map_shard
from gpuworkbench.data.tokenization.tokenizer import load_tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_json, commit_directory, discard_directory, discard_leftovers
from gpuworkbench.io.atomic import TEMPORARY_PREFIX, temporary_path

VERIFY_LIMIT_BYTES = 256 * 1024 * 1024  # of a larger directory, sizes and headers are checked: every run waits for it
_STALE_S = 24 * 3600.0
_STALE_PARTIAL_S = 14 * 24 * 3600.0


def find(home: Path) -> PreparedData | None:
    """The prepared directory `home`, None where it is absent, damaged or of another format."""
    try:
        content = (home / FILE_NAME).read_bytes()
        meta = msgspec.json.decode(content, type=Meta)
        if meta.format != FORMAT or meta != meta.sealed():
            return None
        if load_tokenizer(home / TOKENIZER_FOLDER).sha256 != meta.tokenizer_sha256:
            return None
        parts = (*meta.train, *meta.val)
        is_small = sum(part.size_bytes for part in parts) <= VERIFY_LIMIT_BYTES
        intact = all(_is_intact(home, part, is_hashed=is_small) for part in parts)
    except (OSError, msgspec.MsgspecError, ValueError, DataError):
        return None
    return PreparedData.from_meta(home, meta) if intact else None


def _is_intact(home: Path, part: Part, *, is_hashed: bool) -> bool:
    path = home / part.path
    tokens = map_shard(path, part.raw_dtype)
    if path.stat().st_size != part.size_bytes or len(tokens) != part.n_tokens:
        return False
    mask = map_mask(home / part.mask, part.n_tokens) if part.mask else None
    if os.path.isabs(part.path) or not is_hashed:
        return True  # shards in place: their sizes and times are in the directory's key
    if mask is not None and hashlib.sha256(np.asarray(mask).data).hexdigest() != part.mask_sha256:
        return False
    return hashlib.sha256(np.asarray(tokens).view(np.uint8).data).hexdigest() == part.sha256


def build(
    home: Path,
    fill: Callable[[Path], Meta],
    on_progress: Progress,
    files: Files = REAL_FILES,
    *,
    replaces_damaged: bool = True,
) -> PreparedData:
    """Let `fill` write shards and tokenizer into a working folder, add meta.json, and commit it as `home`.

    What an interruption or a full disk leaves is kept where `fill` can go on with it. Anything at `home` that is not
    what is wanted goes, with `replaces_damaged`; else only an empty folder does. Raises OSError.
    """
    with working_folder(home, on_progress, files) as folder:
        is_kept = False
        try:
            if (theirs := find(home)) is not None:  # made while this process waited
                return theirs
            discard_leftovers(folder, files)
            meta = fill(folder).sealed()
            atomic_write_json(folder / FILE_NAME, meta, files)
            return _commit(folder, home, meta, files, replaces_damaged)
        except DataError as error:
            is_kept = isinstance(error.__cause__, OSError) and is_resumable(folder)  # the source's disk may come back
            raise
        except BaseException:
            is_kept = is_resumable(folder)
            raise
        finally:
            if not is_kept and folder.exists():
                discard_directory(folder, files)


def _commit(folder: Path, home: Path, meta: Meta, files: Files, replaces_damaged: bool) -> PreparedData:
    if replaces_damaged and home.exists():  # damaged, or it would have been found
        damaged = temporary_path(home.with_name(f"{home.name}-damaged"))
        files.rename(home, damaged)
        discard_directory(damaged, files)
    try:
        commit_directory(folder, home, files)
    except OSError:
        if (theirs := find(home)) is None:
            raise
        return theirs
    with suppress(OSError):
        files.unlink(home / partial.FILE_NAME)
    return PreparedData.from_meta(home, meta)


def cannot_write(folder: Path, error: OSError, *, is_cache: bool = True) -> DataError:
    """The one-line form of a failure to write prepared data."""
    what, other = ("the data cache at ", "set GPUWORKBENCH_CACHE_DIR to") if is_cache else ("", "name with --out")
    return DataError(
        f"cannot write {what}{folder}: {error.strerror or error}", f"free space there, or {other} another folder"
    )


def sweep(folder: Path, files: Files) -> None:
    """Remove what killed preparations left behind long ago."""
    ages = {TEMPORARY_PREFIX: _STALE_S, partial.PREFIX: _STALE_PARTIAL_S}
    for entry in os.scandir(folder):
        limit_s = next((age for prefix, age in ages.items() if entry.name.startswith(prefix)), None)
        if limit_s is None or not entry.is_dir(follow_symlinks=False):
            continue
        with suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > limit_s:
                discard_directory(Path(entry.path), files)
