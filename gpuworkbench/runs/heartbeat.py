"""The heartbeat: twice a second the trainer says that it lives and, apart from that, when it last got anywhere.

A thread that beats proves only that the process exists. Progress is stamped by the training loop itself, on the
monotonic clock too, so that neither a clock change nor a suspended laptop looks like a hang.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes
from gpuworkbench.io.reading import read_regular_file

INTERVAL_S = 0.5
FRESH_BEAT_S = 3.0
PHASE_QUEUED = "queued"  # the trainer waits for its card's lock
PHASE_EXITED = "exited"  # the writer was stopped in an orderly way
_MAX_BYTES = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Heartbeat(Struct, frozen=True, kw_only=True):
    """One beat. `mono_s` and `last_progress_mono_s` are the trainer's monotonic clock."""

    pid: int
    time_unix_s: float
    mono_s: float
    last_step: int | None = None
    last_progress_unix_s: float | None = None
    last_progress_mono_s: float | None = None
    boot_id: str | None = None
    phase: str | None = None


class HeartbeatWriter:
    """The thread that writes heartbeat.json. A full or failing disk costs beats, never the training."""

    def __init__(self, path: Path, files: Files = REAL_FILES, interval_s: float = INTERVAL_S) -> None:
        self.path = path
        self.last_error: OSError | None = None
        self._files = files
        self._interval_s = interval_s
        self._boot_id = boot_id()
        self._progress: tuple[int, float, float] | None = None  # step, unix, mono: replaced as one
        self._phase: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write the first beat now and go on in a daemon thread."""
        self._beat()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)
        self._thread.start()

    def progress(self, step: int) -> None:
        """The training loop got somewhere: `step` optimizer steps are done (also called within long evaluations)."""
        self._progress = (step, time.time(), time.monotonic())

    @property
    def last_step(self) -> int:
        """The step of the last progress, 0 before any."""
        return self._progress[0] if self._progress else 0

    def set_phase(self, phase: str | None) -> None:
        """What the trainer is at, in a word; PHASE_QUEUED while it waits for its card."""
        self._phase = phase

    def stop(self) -> None:
        """End the thread and leave a last beat that says the exit was orderly."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._phase = PHASE_EXITED
        self._beat()

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._beat()

    def _beat(self) -> None:
        step, unix_s, mono_s = self._progress or (None, None, None)
        beat = Heartbeat(
            pid=os.getpid(),
            time_unix_s=time.time(),
            mono_s=time.monotonic(),
            last_step=step,
            last_progress_unix_s=unix_s,
            last_progress_mono_s=mono_s,
            boot_id=self._boot_id,
            phase=self._phase,
        )
        try:
            atomic_write_bytes(self.path, msgspec.json.encode(beat), self._files, durable=False)
            self.last_error = None
        except OSError as error:
            self.last_error = error


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The last beat, or None where there is none or it is malformed."""
    try:
        return msgspec.json.decode(read_regular_file(path, _MAX_BYTES), type=Heartbeat)
    except (OSError, ValueError, RecursionError):
        return None


def living_pid(path: Path, now: float | None = None) -> int | None:
    """The pid of a trainer whose last beat is fresh and whose process lives; None otherwise.

    Evidence beside the lock, for the case that somebody removed the lock's file.
    """
    beat = read_heartbeat(path)
    moment = time.time() if now is None else now
    if beat is None or beat.phase == PHASE_EXITED or beat.boot_id != boot_id():
        return None
    if not 0 <= moment - beat.time_unix_s <= FRESH_BEAT_S:
        return None
    try:
        state = (
            Path(f"/proc/{beat.pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
        )
    except (OSError, IndexError):
        return None
    return None if state in "ZX" else beat.pid


def boot_id() -> str | None:
    """The kernel's id of this boot; two beats with different ids have a restart between them."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
