"""What screens share: where runs are, which clock counts, which trainers this app started. Replaceable in tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpuworkbench.gpu.nvml import Sampler
from gpuworkbench.launch.spawn import TrainerProcess
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths


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

    def reap(self) -> None:
        """Collect the ended ones, so that none stays a zombie."""
        for root, trainer in list(self._started.items()):
            if trainer.exit_code() is not None and probe_lock(trainer.paths.lock) is None:
                del self._started[root]


@dataclass(frozen=True)
class Services:
    """Given to the app once."""

    runs_dir: Path
    clock: Callable[[], float] = time.time
    make_sampler: Callable[[], Sampler] = Sampler
    trainers: Trainers = field(default_factory=Trainers)
