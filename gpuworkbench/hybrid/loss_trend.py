"""The running level of the training loss: what counts as divergence after a jump, and a first guess of what comes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DECAY = 0.9  # of the running mean and variance: about the last ten steps
LEVEL_GAIN, SLOPE_GAIN, DAMPING = 0.3, 0.1, 0.95  # of the forecast


class LossTrend:
    """Losses of true steps in order: weighted mean and variance, and a forecast.

    The forecast is Holt's with a damped trend (Gardner and McKenzie 1985): a loss curve is convex, and a straight line
    would promise too much.
    """

    def __init__(self) -> None:
        self.mean: float | None = None
        self.variance = 0.0
        self.level = 0.0
        self.slope = 0.0
        self.count = 0

    def observe(self, loss: float) -> None:
        """One more true step; a loss that is no number is left out."""
        if not math.isfinite(loss):
            return
        self.count += 1
        if self.mean is None:
            self.mean = self.level = loss
            return
        # West 1979: the incremental form of the weighted mean and variance.
        off = loss - self.mean
        self.mean += (1 - DECAY) * off
        self.variance = DECAY * (self.variance + (1 - DECAY) * off * off)
        before, trend = self.level, DAMPING * self.slope
        self.level = LEVEL_GAIN * loss + (1 - LEVEL_GAIN) * (before + trend)
        self.slope = SLOPE_GAIN * (self.level - before) + (1 - SLOPE_GAIN) * trend

    def limit(self, sigmas: float) -> float:
        """The loss beyond which training has diverged: mean + `sigmas` standard deviations; infinite at first."""
        return math.inf if self.mean is None else self.mean + sigmas * math.sqrt(self.variance)

    def predicted(self, steps: int) -> float | None:
        """The loss `steps` true steps ahead; None before the third loss."""
        if self.count < 3:
            return None
        return self.level + self.slope * DAMPING * (1 - DAMPING**steps) / (1 - DAMPING)

    def values(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return dict(vars(self))

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore `values`."""
        self.mean = None if values["mean"] is None else float(values["mean"])
        self.variance, self.level = float(values["variance"]), float(values["level"])
        self.slope, self.count = float(values["slope"]), int(values["count"])
