"""Auto-tuning, within bounds: restarts on plateaus, adaptive clipping, a band for the gradient norm.

Each action is returned with its reason. Clipping is AutoClip (Seetharaman, Wichern, Pardo, Le Roux 2020, arXiv
2007.14469): at a percentile of the gradient norms seen so far, here of the last HISTORY ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.running import RunningLevel
from gpuworkbench.hybrid.signals import StepSignals

HISTORY = 400
PERCENTILE = 90.0  # the largest tenth is clipped
WARM_STEPS = 100
CLIP_EVERY = 50  # steps between two changes of the clipping norm
CLIP_CHANGE = 1.1  # smaller ones are not worth a change
LOSS_DECAY = 0.98
PLATEAU_STEPS = 200
PLATEAU_GAIN = 0.002  # relative fall of the smoothed loss that counts as progress
BOOST = 1.5  # of the learning rate at a restart, fading over RESTART_STEPS
RESTART_STEPS = 100
MAX_RESTARTS = 3
BAND = 8.0  # times the running gradient norm, above and below
BAND_STEPS = 10
BAND_CUT, BAND_RAISE = 0.8, 1.1
BAND_RANGE = (0.5, 1.2)
NO_RESTART_BELOW = 0.99  # of the highest rate: a falling one is a decay that was planned


class TuningAction(NamedTuple):
    """`key` was `old` and is `new`, for `reason`."""

    key: str
    old: float
    new: float
    reason: str


class AutoTuning(PlainState):
    """Watches true steps; `lr_factor` and `clip_norm` are what it made of them."""

    NAMES = ("norms", "step", "clip", "best", "best_step", "restarts", "boost_step", "band", "outside", "top_lr")
    CHILDREN = ("loss", "gradient")

    def __init__(self, clip_norm: float) -> None:
        self.configured_clip = clip_norm
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.loss, self.gradient = RunningLevel(LOSS_DECAY), RunningLevel(LOSS_DECAY)
        self.norms: list[float] = []
        self.step, self.restarts = 0, 0
        self.clip = self.configured_clip
        self.best: float | None = None
        self.best_step, self.boost_step = 0, -RESTART_STEPS
        self.band, self.outside = 1.0, 0
        self.top_lr = 0.0

    @property
    def lr_factor(self) -> float:
        """Multiple of the scheduled rate: the band's, times a restart's that fades."""
        left = 1.0 - (self.step - self.boost_step) / RESTART_STEPS
        return self.band * (1.0 + (BOOST - 1.0) * max(0.0, min(1.0, left)))

    def observe(self, signals: StepSignals) -> list[TuningAction]:
        """A true step with finite numbers; what is changed because of it."""
        self.step = signals.step
        self.norms = [*self.norms[1 - HISTORY :], signals.grad_norm]
        scheduled = signals.lr / self.lr_factor if self.lr_factor > 0.0 else signals.lr
        self.top_lr = max(self.top_lr, scheduled)
        actions = [*self._clip(), *self._band(signals.grad_norm), *self._plateau(scheduled)]
        self.loss.push(signals.loss)
        self.gradient.push(math.log(max(signals.grad_norm, 1e-30)))
        return actions

    def _clip(self) -> list[TuningAction]:
        if len(self.norms) < WARM_STEPS or self.step % CLIP_EVERY:
            return []
        wanted = percentile(self.norms, PERCENTILE)
        if self.configured_clip > 0.0:
            wanted = min(wanted, self.configured_clip)
        old = self.clip
        if wanted <= 0.0 or (old > 0.0 and max(wanted / old, old / wanted) < CLIP_CHANGE):
            return []
        self.clip = wanted
        reason = f"{PERCENTILE:g}th percentile of the last {len(self.norms)} gradient norms"
        return [TuningAction("train.grad_clip_norm", old, wanted, reason)]

    def _band(self, grad_norm: float) -> list[TuningAction]:
        """A norm that stays outside of its band moves the rate a little: down above it, up below it."""
        if self.gradient.count < WARM_STEPS:
            return []
        ratio = math.exp(max(-50.0, min(50.0, math.log(max(grad_norm, 1e-30)) - self.gradient.mean)))
        side = (ratio > BAND) - (ratio < 1.0 / BAND)
        self.outside = self.outside + side if side and side * self.outside >= 0 else side
        if abs(self.outside) < BAND_STEPS:
            return []
        self.outside, old = 0, self.band
        self.band = max(BAND_RANGE[0], min(BAND_RANGE[1], old * (BAND_CUT if side > 0 else BAND_RAISE)))
        reason = f"gradient norm {ratio:.3g} times its level for {BAND_STEPS} steps"
        return [TuningAction("learning rate factor", old, self.band, reason)] if self.band != old else []

    def _plateau(self, scheduled_lr: float) -> list[TuningAction]:
        if self.loss.count < WARM_STEPS:
            return []
        if self.best is None or self.loss.mean < self.best * (1.0 - PLATEAU_GAIN):
            self.best, self.best_step = self.loss.mean, self.step
        is_stable = scheduled_lr >= NO_RESTART_BELOW * self.top_lr
        if not is_stable or self.step - self.best_step < PLATEAU_STEPS or self.restarts >= MAX_RESTARTS:
            return []
        old = self.lr_factor
        self.restarts += 1
        self.best_step = self.boost_step = self.step
        reason = f"no fall of the loss by {PLATEAU_GAIN:.1%} in {PLATEAU_STEPS} steps; restart {self.restarts} of "
        return [TuningAction("learning rate factor", old, self.lr_factor, f"{reason}{MAX_RESTARTS}")]


def percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between order statistics, as numpy's default."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100.0
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
