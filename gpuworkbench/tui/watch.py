"""A daemon thread that makes frozen snapshots, and a mailbox of one: whoever looks late sees the newest, never a queue.

The app's loop is told once per snapshot that it has not fetched yet, so a slow screen slows nothing down and a fast
source cannot flood it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# Gets the event that asks it to end; yields whenever there is something new, and waits on that event in between.
Source = Callable[[threading.Event], Iterator[T]]


class Watcher(Generic[T]):
    """Runs a source until `stop`. `on_ready` is called in the watcher's thread."""

    def __init__(self, source: Source[T], on_ready: Callable[[], object], name: str) -> None:
        self._source = source
        self._on_ready = on_ready
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._slot: T | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; does not wait, since a read of a slow disk must not hold the screen."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end (tests do)."""
        self._thread.join(timeout_s)

    def take(self) -> T | None:
        """The newest snapshot that nobody took yet."""
        with self._lock:
            value, self._slot = self._slot, None
        return value

    def _run(self) -> None:
        for value in self._source(self._stop):
            if self._stop.is_set():
                return
            with self._lock:
                is_news = self._slot is None
                self._slot = value
            if is_news:
                self._tell()

    def _tell(self) -> None:
        try:
            self._on_ready()
        except RuntimeError:
            self._stop.set()  # the app's loop has ended
