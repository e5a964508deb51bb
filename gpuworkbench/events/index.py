"""`events.idx`: a fold of the log so far, stored beside it, so that a log of ten million events opens at once.

An index is a cache: whatever is damaged, foreign or of another version is ignored and made again from the log. The
trainer writes it into the run directory; a reader that had to make one keeps it in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import platformdirs

from gpuworkbench.errors import RunError
from gpuworkbench.events.codec import decode_lines
from gpuworkbench.events.fold import Fold, SavedFold
from gpuworkbench.events.log_file import open_regular
from gpuworkbench.events.reader import EventReader
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes

INDEX_VERSION = 3
INDEX_NAME = "events.idx"
MAX_INDEX_BYTES = 32 * 1024 * 1024
MAX_CACHED_INDEXES = 64
_FINGERPRINT_BYTES = 4096
_MAGIC = b"gpuworkbench events.idx 1\n"


class _IndexFile(msgspec.Struct):
    version: int
    covered_bytes: int
    fingerprint: str
    fold: SavedFold


_DECODER = msgspec.msgpack.Decoder(_IndexFile)
_ENCODER = msgspec.msgpack.Encoder(enc_hook=str)


def save_index(path: Path, log_path: Path, fold: Fold, covered_bytes: int, files: Files = REAL_FILES) -> None:
    """Store `fold`, which holds the log's first `covered_bytes`. Raises OSError and RunError."""
    fingerprint = _fingerprint(log_path, covered_bytes)
    if fingerprint is None:
        return  # the log is not what was folded any more
    body = _ENCODER.encode(_IndexFile(INDEX_VERSION, covered_bytes, fingerprint, fold.save()))
    digest = hashlib.sha256(body).digest()
    atomic_write_bytes(path, _MAGIC + digest + body, files, durable=False)


def load_index(path: Path, log_path: Path) -> tuple[Fold, int] | None:
    """The fold stored at `path` and how many bytes of the log it covers; `None` where it is not one for this log."""
    try:
        fd = open_regular(path)
        if fd is None:
            return None
        with os.fdopen(fd, "rb") as stream:
            data = stream.read(MAX_INDEX_BYTES + 1)
        start = len(_MAGIC) + hashlib.sha256().digest_size
        body = data[start:]
        if len(data) > MAX_INDEX_BYTES or data[:start] != _MAGIC + hashlib.sha256(body).digest():
            return None
        index = _DECODER.decode(body)
        if index.version != INDEX_VERSION or index.covered_bytes < 0:
            return None
        if index.fingerprint != _fingerprint(log_path, index.covered_bytes):
            return None
        return Fold.load(index.fold), index.covered_bytes
    except (OSError, RunError, ValueError, RecursionError, OverflowError):
        return None  # msgspec's errors are ValueErrors


def cached_index_path(log_path: Path) -> Path:
    """Where a reader keeps its own index of this log: in the user's cache, never in the run directory."""
    root = os.environ.get("GPUWORKBENCH_CACHE_DIR") or platformdirs.user_cache_dir("gpuworkbench")
    name = hashlib.sha256(os.fsencode(os.path.abspath(log_path))).hexdigest()[:32]
    return Path(root) / "indexes" / f"{name}.idx"


def best_index(log_path: Path) -> tuple[Fold, int]:
    """The fold that covers most of the log, from the run directory or the user's cache; an empty one at worst."""
    found = [load_index(path, log_path) for path in (log_path.with_name(INDEX_NAME), cached_index_path(log_path))]
    return max((entry for entry in found if entry is not None), key=lambda entry: entry[1], default=(Fold(), 0))


def save_cached_index(log_path: Path, fold: Fold, covered_bytes: int) -> bool:
    """Keep a reader's index in the user's cache, for a limited number of logs; False where that is not possible."""
    path = cached_index_path(log_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_index(path, log_path, fold, covered_bytes)
        kept = sorted(path.parent.glob("*.idx"), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for old in kept[MAX_CACHED_INDEXES:]:
            old.unlink(missing_ok=True)
    except (OSError, RunError):
        return False
    return True


class IndexKeeper:
    """The trainer's side: folds its own log a chunk at a time and stores the index now and then.

    Reads the log back instead of being told of each event, so that an index can only hold what is really in the log
    and writing an event costs nothing more. No failure here reaches training.
    """

    def __init__(
        self,
        log_path: Path,
        files: Files = REAL_FILES,
        *,
        chunk_bytes: int = 256 * 1024,
        interval_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log_path = log_path
        self._path = log_path.with_name(INDEX_NAME)
        self._files = files
        self._chunk_bytes = chunk_bytes
        self._interval_s = interval_s
        self._clock = clock
        self._fold, offset = best_index(log_path)
        self._reader = EventReader(log_path, offset)
        self._saved_bytes = offset
        self._saved_at = clock()

    def tick(self) -> None:
        """Fold at most one chunk (about 1 ms per 1,000 events), and store the index where it is due."""
        try:
            if self._fold_chunk() == 0 and self._clock() - self._saved_at >= self._interval_s:
                self._save()
        except (OSError, RunError):
            self._saved_at = self._clock()

    def finish(self) -> None:
        """Fold the rest of the log and store the index: at a checkpoint and at an attempt's end."""
        try:
            while self._fold_chunk():
                pass
            self._save()
        except (OSError, RunError):
            return

    def _fold_chunk(self) -> int:
        lines = self._reader.poll_lines(self._chunk_bytes)
        self._fold.add(decode_lines(lines))
        return len(lines)

    def _save(self) -> None:
        self._saved_at = self._clock()
        if self._reader.offset != self._saved_bytes:
            save_index(self._path, self._log_path, self._fold, self._reader.offset, self._files)
            self._saved_bytes = self._reader.offset


def _fingerprint(log_path: Path, covered_bytes: int) -> str | None:
    """A hash of the covered part's beginning and end; `None` where the log is shorter or not there."""
    fd = open_regular(log_path)
    if fd is None:
        return None
    try:
        if os.fstat(fd).st_size < covered_bytes:
            return None
        length = min(covered_bytes, _FINGERPRINT_BYTES)
        head, tail = os.pread(fd, length, 0), os.pread(fd, length, covered_bytes - length)
    finally:
        os.close(fd)
    return hashlib.sha256(head + tail).hexdigest()
