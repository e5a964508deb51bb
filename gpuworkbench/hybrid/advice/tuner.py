"""Auto-tuning beside a training: its factors reach the rate and the clipping, its actions the log."""

from __future__ import annotations

import math
from typing import Any

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.hybrid.auto_tuning import AutoTuning
from gpuworkbench.hybrid.components import NoAdvice
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.signals import StepSignals


class TunerAdvice(PlainState, NoAdvice):
    """See AutoTuning."""

    NAMES = ("told",)
    CHILDREN = ("tuning",)

    def __init__(self, config: RunConfig) -> None:
        self.tuning = AutoTuning(config.train.grad_clip_norm)
        self.told: list[Any] = []

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.tuning.reset()
        self.told = []

    def observe(self, signals: StepSignals) -> None:
        """A true step."""
        if math.isfinite(signals.loss) and math.isfinite(signals.grad_norm):
            self.told += [list(action) for action in self.tuning.observe(signals)]

    def lr_factor(self) -> float:
        """See AutoTuning."""
        return self.tuning.lr_factor

    def clip_norm(self, configured: float) -> float:
        """At most the configured norm, where there is one."""
        return self.tuning.clip

    def changes(self) -> list[tuple[str, float, float, str]]:
        """(key, old, new, reason) since it was asked last."""
        found, self.told = self.told, []
        return [(key, old, new, reason) for key, old, new, reason in found]
