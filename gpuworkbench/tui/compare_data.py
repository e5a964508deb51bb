"""Following several runs for the compare screen: their logs and evidence in, frozen views out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from msgspec import Struct

from gpuworkbench.errors import RunError
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.compare import Compared, compared, lineage
from gpuworkbench.state.lineage import Branch
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.run_state import RunState

INTERVAL_S = 0.5
SLICE_S = 0.5  # of reading before what is known so far is shown


class CompareView(Struct, frozen=True):
    """The runs as they are now. `is_reading`: there is more in their logs than was taken in."""

    runs: tuple[Compared, ...]
    branches: tuple[Branch, ...]
    is_reading: bool


class _Followed:
    """One run's log while it is followed."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.problem = ""
        self._log: LiveLog | None = None

    def read(self, deadline_s: float, stop: threading.Event) -> bool:
        """Take in the log until its end or `deadline_s`; whether more is waiting."""
        try:
            self._log = self._log or LiveLog(self.paths.events)
            self.problem = ""
            while not stop.is_set():
                if not self._log.poll().lines:
                    self._log.keep_index()
                    return False
                if time.monotonic() >= deadline_s:
                    return True
        except RunError as error:
            self.problem = error.line()
        return False

    def now(self) -> Compared:
        """The run as far as it was taken in."""
        state = self._log.state() if self._log is not None else RunState()
        return compared(self.paths, state, self.problem)

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()


class CompareSource:
    """The source of a comparison's views for a `Watcher`."""

    def __init__(self, runs: Sequence[RunPaths]) -> None:
        self._runs = [_Followed(paths) for paths in runs]

    def __call__(self, stop: threading.Event) -> Iterator[CompareView]:
        """Views until `stop`, whenever something changed."""
        branches: tuple[Branch, ...] | None = None
        last: CompareView | None = None
        while not stop.is_set():
            share_s = SLICE_S / len(self._runs)
            is_reading = any([run.read(time.monotonic() + share_s, stop) for run in self._runs])
            runs = tuple(run.now() for run in self._runs)
            if branches is None and not is_reading:
                branches = tuple(lineage(runs))
            view = CompareView(runs, branches or (), is_reading)
            if last is None or _key(view) != _key(last):
                last = view
                yield view
            if not is_reading:
                stop.wait(INTERVAL_S)
        for run in self._runs:
            run.close()


def _key(view: CompareView) -> object:
    """What makes a view worth drawing."""
    runs = [(run.state.n_events, run.status, run.name, run.problem, run.config) for run in view.runs]
    return runs, view.branches, view.is_reading
