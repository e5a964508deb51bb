"""The divergence monitor beside a training: keeps its verdicts until they are acted on, and what they changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpuworkbench.hybrid.components import NoAdvice
from gpuworkbench.hybrid.divergence import DivergenceMonitor, Level, Verdict
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.signals import StepSignals

CUT = 0.5  # of the learning rate
LOWEST = 0.1
RECOVERY_STEPS = 100
RECOVERY = (1.0 / CUT) ** (1.0 / RECOVERY_STEPS)  # a step
SHORT_STEPS = 100  # steps that horizons stay halved


class MonitorAdvice(PlainState, NoAdvice):
    """See DivergenceMonitor. `skips_nonfinite`: a batch without a finite gradient is passed over (else it ends the run,
    as train.on_nonfinite = stop says)."""

    NAMES = ("pending", "short_until", "factor", "step", "skipped")
    CHILDREN = ("monitor",)
    reads_each_step = True

    def __init__(self, threshold: float, *, skips_nonfinite: bool) -> None:
        self.monitor = DivergenceMonitor(threshold)
        self.skips_nonfinite = skips_nonfinite
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.monitor.restart()
        self.monitor.critical_steps = []
        self.pending: list[Any] = []  # verdicts as JSON can hold them
        self.short_until, self.factor, self.step = 0, 1.0, 0
        self.skipped = 0  # the last step whose update was left out

    @property
    def has_verdicts(self) -> bool:  # type: ignore[override]
        """Whether something is to be acted on."""
        return bool(self.pending)

    def observe(self, signals: StepSignals) -> None:
        """A true step; what is wrong with it is kept. What is no number at all is the trainer's own business."""
        self.step = signals.step
        self.factor = min(1.0, self.factor * RECOVERY)
        if signals.step != self.skipped and math.isfinite(signals.loss) and math.isfinite(signals.grad_norm):
            self._keep(self.monitor.observe(signals))

    def skips(self, step: int, loss: float, grad_norm: float) -> bool:
        """Passes over a batch whose gradient would do harm."""
        if not self.skips_nonfinite and not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return False
        verdict = self.monitor.before_update(step, loss, grad_norm)
        if verdict.level < Level.critical:
            return False
        self.skipped = step
        self._keep(verdict if verdict.is_news else verdict._replace(is_news=True, actions=("skip_batch",)))
        return True

    def was_skipped(self, step: int) -> bool:
        """Whether the update of this step was left out."""
        return step == self.skipped

    def predicted(self, predicted: float | None, actual: float) -> None:
        """A predicted loss has met the truth."""
        if predicted is not None:
            self._keep(self.monitor.prediction(self.step, predicted, actual))

    def verdicts(self) -> list[Verdict]:
        """Hands them over."""
        found, self.pending = self.pending, []
        return [Verdict(Level(level), signal, value, limit, tuple(done)) for level, signal, value, limit, done in found]

    def acted(self, actions: Sequence[str]) -> None:
        """Cuts and shortens."""
        if "lr_cut" in actions:
            self.factor = max(LOWEST, self.factor * CUT)
        if "shorter_horizon" in actions:
            self.short_until = self.step + SHORT_STEPS

    def horizon_factor(self) -> float:
        """Half, for a while after an alarm."""
        return 0.5 if self.step < self.short_until else 1.0

    def lr_factor(self) -> float:
        """1, or what a cut left of it."""
        return self.factor

    def _keep(self, verdict: Verdict) -> None:
        if verdict.is_news:
            value = verdict.value if verdict.value is not None and math.isfinite(verdict.value) else None
            self.pending.append([int(verdict.level), verdict.signal, value, verdict.threshold, list(verdict.actions)])
