"""What screens share: where runs are, which clock counts, which trainers this app started. Replaceable in tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpuworkbench.config.user_settings import SettingsStore
from gpuworkbench.gpu.nvml import Sampler
from gpuworkbench.launch.spawn import TrainerProcess
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.store import is_run
from gpuworkbench.state.compare import MAX_RUNS


class Trainers:
    """Trainer processes that this app started. They outlive it; while it lives it collects those that ended."""

    def __init__(self) -> None:
        self._started: dict[Path, TrainerProcess] = {}

    def add(self, trainer: TrainerProcess) -> None:
        """Remember a started trainer."""
        self._started[trainer.paths.root] = trainer

    def live(self) -> list[RunPaths]:
        """The runs started here that still have a trainer."""
        self.reap()
        return [trainer.paths for trainer in self._started.values()]

    def known(self) -> list[RunPaths]:
        """The runs started here, as far as they were not reaped. For any thread."""
        return [trainer.paths for trainer in list(self._started.values())]

    def reap(self) -> None:
        """Collect the ended ones, so that none stays a zombie."""
        for root, trainer in list(self._started.items()):
            if trainer.exit_code() is not None and probe_lock(trainer.paths.lock) is None:
                del self._started[root]


class Marks:
    """The runs marked for comparison, in the order they were marked; every list of runs shows the same."""

    def __init__(self) -> None:
        self._roots: dict[Path, None] = {}

    def toggle(self, root: Path) -> bool:
        """Mark a run, or take its mark away; False where as many as can be compared are marked already."""
        if root in self._roots:
            del self._roots[root]
        elif len(self._roots) >= MAX_RUNS:
            return False
        else:
            self._roots[root] = None
        return True

    def drop(self, root: Path) -> None:
        """A run that is gone is not marked any more."""
        self._roots.pop(root, None)

    def runs(self) -> list[RunPaths]:
        """The marked runs that are still there."""
        for root in [root for root in self._roots if not is_run(root)]:
            del self._roots[root]
        return [RunPaths(root) for root in self._roots]

    def numbers(self) -> dict[str, int]:
        """The path of each marked run and its place, from 0: its colour and marker."""
        return {str(root): index for index, root in enumerate(self._roots)}


@dataclass(frozen=True)
class Services:
    """Given to the app once."""

    runs_dir: Path
    clock: Callable[[], float] = time.time
    make_sampler: Callable[[], Sampler] = Sampler
    trainers: Trainers = field(default_factory=Trainers)
    marks: Marks = field(default_factory=Marks)
    settings: SettingsStore = field(default_factory=SettingsStore)
