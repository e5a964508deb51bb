"""The divergence monitor: sees that a training goes wrong, says how badly, and what is to be done about it.

Every test is calibrated on white noise, since a training loss is mostly that: what alarms has a probability of about
1e-6 a step or less there (tests/training/test_hybrid_divergence.py counts over 100,000 steps and on recorded runs).
The monitor decides; the trainer acts.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

from gpuworkbench.hybrid.dynamics.trend import Trend
from gpuworkbench.hybrid.oscillation import WINDOW, oscillation_share, significant_share
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.running import RunningLevel
from gpuworkbench.hybrid.signals import StepSignals

WARM_STEPS = 30  # true steps before levels mean anything
SHORT_STEPS = 8  # losses whose mean is held against the long level
LEVEL_DECAY = 0.98
SPIKE_SD = 8.0  # of a single loss; 1e-15 for a normal one, and real losses have heavier tails
NOISE_DECAY = 0.96
GRADIENT_DECAY = 0.95
GRADIENT_SD = 6.0
EXPLODES = {"caution": 3.0, "warning": 10.0, "critical": 100.0}  # times the running gradient norm
VANISHES = 1.0 / 300.0
VANISHING_STEPS = 5
TINY = 1e-30
REPEAT_STEPS = 25  # a level that lasts is told again after so many steps
CRITICAL_LIMIT = 3  # critical events within LIMIT_STEPS that end the run with a checkpoint
LIMIT_STEPS = 200
PREDICTION_SD = 3.0
PREDICTIONS = 5  # predictions whose mean error is looked at


class Level(IntEnum):
    """How bad it is."""

    normal = 0
    caution = 1
    warning = 2
    critical = 3


class Verdict(NamedTuple):
    """What the monitor saw. `is_news`: worth an event, since it is worse than before or lasts; `actions` in the order
    in which they are to be done: shorter_horizon, force_full, skip_batch, rollback, lr_cut, predictor_reset, stop."""

    level: Level = Level.normal
    signal: str = ""
    value: float | None = None
    threshold: float | None = None
    actions: tuple[str, ...] = ()
    is_news: bool = False


NOTHING = Verdict()
ACTIONS: dict[Level, tuple[str, ...]] = {
    Level.normal: (),
    Level.caution: ("shorter_horizon",),
    Level.warning: ("shorter_horizon", "force_full"),
    Level.critical: ("rollback", "lr_cut", "force_full", "predictor_reset"),
}


class DivergenceMonitor(PlainState):
    """Watches true steps. The unit of the loss tests is the deviation of a single loss around its trend, so that a
    steep start does not widen it. `threshold` is `hybrid.divergence_threshold`: standard deviations
    of a single loss by which the mean of the last SHORT_STEPS losses may exceed the running level.

    The mean of 8 has a standard error of 0.35 deviations, so 2.5 deviations are 7 standard errors.
    """

    NAMES = (
        "short",
        "residuals",
        "steps",
        "vanishing",
        "last_level",
        "last_signal",
        "told_step",
        "critical_steps",
        "errors",
    )
    CHILDREN = ("loss", "gradient", "trend", "noise")

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.loss = RunningLevel(LEVEL_DECAY)
        self.gradient = RunningLevel(GRADIENT_DECAY)
        self.trend, self.noise = Trend(), RunningLevel(NOISE_DECAY)
        self.restart()
        self.critical_steps: list[int] = []

    def restart(self) -> None:
        """Forget the levels: after a change that moves the loss for good reasons (another stage of a curriculum)."""
        for level in (self.loss, self.gradient, self.noise):
            level.mean, level.variance, level.count = 0.0, 0.0, 0
        self.trend.fast, self.trend.slow, self.trend.count = 0.0, 0.0, 0
        self.short: list[float] = []
        self.residuals: list[float] = []
        self.steps, self.vanishing = 0, 0
        self.last_level, self.last_signal, self.told_step = 0, "", 0
        self.errors: list[float] = []

    def before_update(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """Judge a step whose gradients are there and whose update is not done yet: is this batch to be skipped?"""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            what = "nonfinite loss" if not math.isfinite(loss) else "nonfinite gradient norm"
            value = loss if not math.isfinite(loss) else grad_norm
            return self._tell(step, Verdict(Level.critical, what, value, None, ("skip_batch",)))
        ratio = self._gradient_ratio(grad_norm)
        if ratio is not None and ratio >= EXPLODES["critical"]:
            verdict = Verdict(Level.critical, "exploding gradient", ratio, EXPLODES["critical"], ("skip_batch",))
            return self._tell(step, verdict)
        return NOTHING

    def observe(self, signals: StepSignals) -> Verdict:
        """Judge a true step that is done, then take it into the levels."""
        if not (math.isfinite(signals.loss) and math.isfinite(signals.grad_norm)):
            is_loss = not math.isfinite(signals.loss)
            value = signals.loss if is_loss else signals.grad_norm
            what = "nonfinite loss" if is_loss else "nonfinite gradient norm"
            return self._tell(signals.step, Verdict(Level.critical, what, value, None, ACTIONS[Level.critical]))
        found = [self._judge_gradient(signals.grad_norm)]
        self.short = [*self.short, signals.loss][-SHORT_STEPS:]
        found += [self._judge_loss(signals.loss), self._judge_oscillation()]
        self._take(signals)
        return self._tell(signals.step, max(found, key=lambda verdict: verdict.level))

    def prediction(self, step: int, predicted: float, actual: float) -> Verdict:
        """Judge how wrong predicted losses are: the mean error of the last ones, in deviations of a single loss."""
        sd = self.noise.sd
        if sd <= 0.0 or not (math.isfinite(predicted) and math.isfinite(actual)):
            return NOTHING
        self.errors = [*self.errors, (actual - predicted) / sd][-PREDICTIONS:]
        mean = sum(self.errors) / len(self.errors)
        if len(self.errors) < PREDICTIONS or abs(mean) < PREDICTION_SD:
            return NOTHING
        self.errors = []
        actions = ("predictor_reset", "shorter_horizon")
        verdict = Verdict(Level.caution, "prediction error", mean, math.copysign(PREDICTION_SD, mean), actions)
        return self._tell(step, verdict)

    @property
    def is_warm(self) -> bool:
        """Whether enough steps were seen to judge one."""
        return self.steps >= WARM_STEPS

    def _judge_loss(self, loss: float) -> Verdict:
        sd = self.noise.sd
        if not self.is_warm or sd <= 0.0:
            return NOTHING
        spike = (loss - self.trend.forecast(1)) / sd
        if spike >= max(SPIKE_SD, 3.0 * self.threshold):
            limit = max(SPIKE_SD, 3.0 * self.threshold)
            return Verdict(Level.warning, "loss spike", spike, limit, ACTIONS[Level.warning])
        mean = (sum(self.short) / len(self.short) - self.loss.mean) / sd if len(self.short) == SHORT_STEPS else 0.0
        for level, factor in ((Level.critical, 2.0), (Level.warning, 1.0), (Level.caution, 0.75)):
            if mean >= factor * self.threshold:
                return Verdict(level, "loss level", mean, factor * self.threshold, ACTIONS[level])
        return NOTHING

    def _gradient_ratio(self, grad_norm: float) -> float | None:
        """Times the running level (a geometric mean), or None while there is none or the noise alone reaches it."""
        if not self.is_warm:
            return None
        log = math.log(max(grad_norm, TINY))
        if abs(log - self.gradient.mean) < GRADIENT_SD * self.gradient.sd:
            return None
        return math.exp(min(log - self.gradient.mean, 700.0))

    def _judge_gradient(self, grad_norm: float) -> Verdict:
        ratio = self._gradient_ratio(grad_norm)
        self.vanishing = self.vanishing + 1 if ratio is not None and ratio <= VANISHES else 0
        if ratio is None:
            return NOTHING
        if self.vanishing >= VANISHING_STEPS:
            return Verdict(Level.warning, "vanishing gradient", ratio, VANISHES, ACTIONS[Level.warning])
        for level in (Level.critical, Level.warning, Level.caution):
            if ratio >= EXPLODES[level.name]:
                return Verdict(level, "exploding gradient", ratio, EXPLODES[level.name], ACTIONS[level])
        return NOTHING

    def _judge_oscillation(self) -> Verdict:
        if len(self.residuals) < WINDOW or self.steps % (WINDOW // 3):
            return NOTHING
        share, limit = oscillation_share(self.residuals), significant_share()
        if share < limit:
            return NOTHING
        return Verdict(Level.warning, "oscillation", share, limit, ACTIONS[Level.warning])

    def _take(self, signals: StepSignals) -> None:
        """Into the levels. What vanished does not become the new normal, or it would alarm only for a while."""
        self.steps += 1
        self.residuals = [*self.residuals, signals.loss - self.loss.mean if self.loss.count else 0.0][-WINDOW:]
        self.loss.push(signals.loss)
        if self.trend.count:
            self.noise.push(signals.loss - self.trend.forecast(1))
        self.trend.push(signals.loss)
        if not self.vanishing:
            self.gradient.push(math.log(max(signals.grad_norm, TINY)))

    def _tell(self, step: int, verdict: Verdict) -> Verdict:
        """Mark what is news, and end a run that keeps being critical."""
        level = verdict.level
        is_news = level > Level.normal and (
            level > self.last_level or verdict.signal != self.last_signal or step - self.told_step >= REPEAT_STEPS
        )
        self.last_level, self.last_signal = int(level), verdict.signal
        if not is_news:
            return verdict._replace(actions=())
        self.told_step = step
        if level == Level.critical:
            self.critical_steps = [s for s in self.critical_steps if step - s < LIMIT_STEPS] + [step]
            if len(self.critical_steps) > CRITICAL_LIMIT:
                return verdict._replace(actions=("stop",), is_news=True)
        return verdict._replace(is_news=True)
