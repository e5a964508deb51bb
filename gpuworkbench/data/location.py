"""Where data is: the cache folder, the user's paths, and opening a file that may turn out to be anything.

A path given by a person can be a named pipe, a device, a symlink loop or a folder without permission. Everything is
opened non-blocking and checked on the descriptor, so nothing here can hang.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import platformdirs

from gpuworkbench.errors import DataError
from gpuworkbench.io import reading

CACHE_ENV = "GPUWORKBENCH_CACHE_DIR"
NAMED_SOURCES = ("stdlib", "synthetic", "fineweb10B", "fineweb100B", "finewebedu10B")
OFFLINE_FLAGS = "--set data.source=stdlib --set data.tokenizer=bpe-8192"

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)


def cache_root(cache_dir: Path | None = None) -> Path:
    """The user's cache folder of this program: the argument, else GPUWORKBENCH_CACHE_DIR, else the platform's."""
    if cache_dir is not None:
        return cache_dir
    override = os.environ.get(CACHE_ENV)
    return Path(override).expanduser() if override else platformdirs.user_cache_path("gpuworkbench", appauthor=False)


def absolute_source(source: str) -> str:
    """`data.source` as a run stores it: a path is made absolute, so that a trainer started elsewhere finds it."""
    if source in NAMED_SOURCES or not source or "\0" in source:
        return source
    return os.path.abspath(os.path.expanduser(source))


def stat_path(path: Path) -> os.stat_result:
    """`stat` of a user's path. DataError in one line where it cannot be had."""
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """The one-line form of an OSError about a data path."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(f"cannot read data at {path}: {reason}", "check data.source")


def kind_of(mode: int) -> str:
    """What a `st_mode` is, in words, when it is not a regular file."""
    return next((words for test, words in _KINDS if test(mode)), "not a regular file")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, never blocking. DataError for anything else."""
    _require_regular(path, stat_path(path))
    try:
        return os.fdopen(reading.open_regular(path, follow_symlinks=True), "rb")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def _require_regular(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = kind_of(info.st_mode)
        raise DataError(f"{path} is {kind}, not a file", "point data.source at a regular file or a folder")
