"""Checkpoints: snapshot to host memory, written by a thread, committed atomically, verified at load.

Order of a commit, each step needed for "an acknowledged checkpoint survives a power cut": write the files into a
temporary directory, fsync each, write the manifest with their sha256, fsync the directory, rename it to its final
name, fsync the parent, then emit `checkpoint_saved`. Only that event acknowledges, and only after it is anything
older removed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from gpuworkbench.errors import CheckpointError, ForeignCheckpointError
from gpuworkbench.events.schema import CheckpointSaved
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.events.trouble import Trouble
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.io.atomic import TEMPORARY_PREFIX, commit_directory, discard_directory, temporary_path
from gpuworkbench.io.files import REAL_FILES, Files, remove_tree
from gpuworkbench.parts import Stateful
from gpuworkbench.runs.manifest import CheckpointRef, list_checkpoints, verify_checkpoint
from gpuworkbench.runs.paths import CHECKPOINT_NAME, RunPaths
from gpuworkbench.training.checkpoint_files import (
    HostBuffers,
    Snapshot,
    load_checkpoint_files,
    refuse_nonfinite,
    take_snapshot,
    write_checkpoint_files,
)

DAMAGED_PREFIX = ".damaged-"
RETIRED_PREFIX = ".retired-"
_HIDDEN_PREFIXES = (DAMAGED_PREFIX, RETIRED_PREFIX, TEMPORARY_PREFIX)
WAIT_INTERVAL_S = 0.5


class Restored(NamedTuple):
    """What a restore found: the step (None: no checkpoint yet) and a line for each damaged checkpoint passed over."""

    step: int | None
    damaged: tuple[str, ...]


class Checkpointer:
    """Saves and restores the parts of one run. One save is in flight at a time.

    `in_background`: the state is copied to host memory, and written while training goes on; else training waits.
    `alive` is called while `wait` sees a checkpoint grow on the disk: a long write is progress, a hanging disk is not.
    """

    def __init__(
        self,
        paths: RunPaths,
        parts: Mapping[str, Stateful],
        events: EventWriter,
        *,
        keep_last: int,
        keep_best: bool,
        in_background: bool = True,
        files: Files = REAL_FILES,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.paths = paths
        self.parts = parts
        self.events = events
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.files = files
        self.alive = alive
        self.last_saved_step: int | None = None
        self.failure: Exception | None = None
        self._buffers = HostBuffers() if in_background else None
        self._thread: threading.Thread | None = None
        self._in_flight_step: int | None = None
        self._trouble = Trouble()
        self._must_tell = False
        self._untrusted: set[int] = set()  # in place, but damaged or never acknowledged: retention does not count them

    def save(self, step: int, *, best_step: int | None, wait: bool = False, is_asked_for: bool = False) -> None:
        """Snapshot now, write behind training. A failed write is a warning event, never an exception.

        One like the failure before it is told only where the checkpoint `is_asked_for` by somebody who waits.

        Blocks while an earlier save is still being written. With `wait` (a run's end) it returns when the state is
        durable, or has failed to be a second time.
        """
        self._must_tell |= is_asked_for
        if not self._is_saved_or_in_flight(step):
            self._start(step, best_step)
        if wait:
            self.wait()
            if self.last_saved_step != step:
                self._start(step, best_step)
                self.wait()

    def wait(self) -> None:
        """Return when no save is in flight."""
        if self._thread is None or self._in_flight_step is None:
            return
        growing = temporary_path(self.paths.checkpoint(self._in_flight_step))
        num_bytes = -1
        while self._thread.is_alive():
            self._thread.join(WAIT_INTERVAL_S)
            seen, num_bytes = num_bytes, _num_bytes(growing)
            if num_bytes != seen:
                self.alive()
        self._thread = self._in_flight_step = None

    def restore(self) -> Restored:
        """Load the newest intact checkpoint into the parts.

        A damaged one is put aside once one before it is loaded; what was wrong is in the result. Raises
        CheckpointError when checkpoints exist and none is intact, ForeignCheckpointError when the newest intact one
        does not belong to this run or program.
        """
        damaged: list[tuple[Path, CheckpointError]] = []
        for reference in _candidates(self.paths):
            try:
                if reference.path.is_symlink():
                    raise CheckpointError(f"{reference.path.name} is a symbolic link")
                manifest = verify_checkpoint(reference.path)
            except ForeignCheckpointError:
                raise
            except CheckpointError as error:
                damaged.append((reference.path, error))
                continue
            load_checkpoint_files(reference.path, manifest, self.parts)
            for path, _ in damaged:
                self._put_aside(path, DAMAGED_PREFIX)
            self.last_saved_step = reference.step
            self._untrusted.discard(reference.step)
            return Restored(reference.step, tuple(error.message for _, error in damaged))
        if damaged:
            raise CheckpointError(f"no intact checkpoint is left: {damaged[0][1].message}", "start the run anew")
        return Restored(None, ())

    def _is_saved_or_in_flight(self, step: int) -> bool:
        is_writing = self._thread is not None and self._thread.is_alive()
        return step == self.last_saved_step or (is_writing and step == self._in_flight_step)

    def _start(self, step: int, best_step: int | None) -> None:
        started = time.monotonic()
        self.wait()
        try:
            snapshot = take_snapshot(self.parts, step, best_step, self._buffers)
        except (RuntimeError, MemoryError) as error:
            self._failed(step, error)
            return
        stall_s = time.monotonic() - started
        self._in_flight_step = step
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, stall_s), name="checkpoint-writer", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:  # no thread is to be had
            self._thread = self._in_flight_step = None
            self._write(snapshot, stall_s)
        if self._buffers is None:
            self.wait()

    def _write(self, snapshot: Snapshot, stall_s: float) -> None:
        started = time.monotonic()
        final = self.paths.checkpoint(snapshot.step)
        temporary = temporary_path(final)
        try:
            refuse_nonfinite(snapshot)
            if os.path.lexists(temporary):
                remove_tree(self.files, temporary)
            num_bytes = write_checkpoint_files(temporary, snapshot, self.files)
            if os.path.lexists(final):  # damaged, or never acknowledged: a saved step is not saved again
                self.files.rename(final, _aside(final, RETIRED_PREFIX))
            commit_directory(temporary, final, self.files)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on and is told
            if os.path.lexists(temporary):
                discard_directory(temporary, self.files)
            elif os.path.lexists(final):
                self._untrusted.add(snapshot.step)
            self._failed(snapshot.step, error)
            return
        self.failure = None
        failures, self._must_tell = self._trouble.ends(), False
        if failures:
            self.events.emit(
                WarningEvent,
                step=snapshot.step,
                code="checkpoint_works_again",
                message=f"checkpoints are written again, after {_times(failures)} that failed",
            )
        self.last_saved_step = snapshot.step
        self._untrusted.discard(snapshot.step)
        self.events.emit(
            CheckpointSaved,
            step=snapshot.step,
            path=str(final.relative_to(self.paths.root)),
            num_bytes=num_bytes,
            duration_s=(duration_s := time.monotonic() - started),
            stall_s=stall_s + (duration_s if self._buffers is None else 0.0),
        )
        self.events.sync()
        self._prune(snapshot.best_step)

    def _failed(self, step: int, error: Exception) -> None:
        """Tell of the first failure in a row, and of one that has another reason than the one before."""
        self.failure = error
        earlier, reason = self._trouble.count, _reason(error)
        if not (self._trouble.begins(reason) or self._must_tell):
            return
        self._must_tell = False
        before = f", as {_times(earlier)} before" if earlier else ""
        since = "the start" if self.last_saved_step is None else f"step {self.last_saved_step}"
        self.events.emit(
            WarningEvent,
            step=step,
            code="checkpoint_failed",
            message=f"checkpoint at step {step} could not be written ({reason}){before}; unsaved since {since}",
            hint="training goes on and the next is tried, told of when that changes; free disk space or check the disk",
        )

    def _put_aside(self, path: Path, prefix: str) -> None:
        """Hide a checkpoint from every later listing, by one rename, so that nobody meets a half of it."""
        try:
            self.files.rename(path, _aside(path, prefix))
        except OSError:
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match:
                self._untrusted.add(int(match[1]))

    def _prune(self, best_step: int | None) -> None:
        """Remove what retention does not keep. Called only after a newer checkpoint is acknowledged."""
        references = list_checkpoints(self.paths)
        trusted = [reference.step for reference in references if reference.step not in self._untrusted]
        kept = set(trusted[: self.keep_last])
        if self.keep_best and best_step is not None:
            kept.add(best_step)
        for reference in references:
            if reference.step not in kept:
                self._put_aside(reference.path, RETIRED_PREFIX)
        for entry in _hidden(self.paths.checkpoints):
            discard_directory(entry, self.files)


def _candidates(paths: RunPaths) -> list[CheckpointRef]:
    """Everything that is named like a checkpoint, newest first, whatever it is."""
    try:
        names = os.listdir(paths.checkpoints)
    except OSError:
        return []
    matches = (CHECKPOINT_NAME.fullmatch(name) for name in names)
    found = [CheckpointRef(int(match[1]), paths.checkpoints / match[0]) for match in matches if match]
    return sorted(found, reverse=True)


def _hidden(checkpoints: Path) -> list[Path]:
    """What failed, damaged and retired checkpoints left behind."""
    try:
        names = os.listdir(checkpoints)
    except OSError:
        return []
    return [checkpoints / name for name in names if name.startswith(_HIDDEN_PREFIXES)]


def _aside(path: Path, prefix: str) -> Path:
    return path.with_name(f"{prefix}{time.time_ns()}-{path.name}")


def _num_bytes(directory: Path) -> int:
    try:
        with os.scandir(directory) as scan:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in scan)
    except OSError:
        return 0


def _times(count: int) -> str:
    return "one" if count == 1 else str(count)


def _reason(error: Exception) -> str:
    """The cause in one line: the system's words, the checkpoint's own, else the exception."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, CheckpointError):
        return error.message
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
