"""Running means and deviations that one outlier cannot move far."""

from __future__ import annotations

import math

from gpuworkbench.hybrid.plain_state import PlainState


class RunningLevel(PlainState):
    """Exponential mean and deviation of a series; values beyond `clip` deviations count as `clip` deviations.

    The deviation is that of the values around the mean *before* they entered it, so `z` is a fair one-step forecast
    error. For the first `n_fast` values both are plain averages, or the start would weigh too much.
    """

    NAMES = ("mean", "variance", "count")

    def __init__(self, decay: float, clip: float = 4.0) -> None:
        self.decay, self.clip = decay, clip
        self.mean, self.variance, self.count = 0.0, 0.0, 0

    @property
    def sd(self) -> float:
        """The deviation; 0 before there is one."""
        return math.sqrt(self.variance)

    def z(self, value: float) -> float:
        """How many deviations `value` is above the mean; 0 while nothing is known."""
        sd = self.sd
        return (value - self.mean) / sd if sd > 0.0 else 0.0

    def push(self, value: float) -> None:
        """Take a finite value in."""
        self.count += 1
        if self.count == 1:
            self.mean = value
            return
        keep = min(self.decay, 1.0 - 1.0 / self.count)
        error = value - self.mean
        if self.count > 10 and self.variance > 0.0:
            limit = self.clip * self.sd
            error = max(-limit, min(limit, error))
        self.mean += (1.0 - keep) * error
        # E[error^2] = var * (1 + share of the mean's own noise); undone so that white noise gives its deviation
        inflation = 1.0 + (1.0 - keep) / (1.0 + keep)
        weight = min(self.decay, 1.0 - 1.0 / (self.count - 1)) if self.count > 1 else 0.0
        self.variance = weight * self.variance + (1.0 - weight) * error * error / inflation
