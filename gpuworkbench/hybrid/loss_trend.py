"""The running level of the training loss: what counts as divergence after a jump, and a first guess of what comes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpuworkbench.hybrid.dynamics.trend import Trend
from gpuworkbench.parts import Part

DECAY = 0.9  # of the running mean and variance: about the last ten steps
TINY = 1e-30  # a loss of 0 has no logarithm


class LossTrend:
    """Losses of true steps in order: weighted mean and variance, and a forecast.

    The forecast is a damped trend of the log-loss (dynamics/trend.py): a loss curve is convex, and a straight line
    would promise too much. benchmarks/hybrid_parts.py holds it against others.
    """

    def __init__(self) -> None:
        self.mean: float | None = None
        self.variance = 0.0
        self.damped = Trend()

    def observe(self, loss: float) -> None:
        """One more true step; a loss that is no number is left out."""
        if not math.isfinite(loss):
            return
        self.damped.push(math.log(max(loss, TINY)))
        if self.mean is None:
            self.mean = loss
            return
        # West 1979: the incremental form of the weighted mean and variance.
        off = loss - self.mean
        self.mean += (1 - DECAY) * off
        self.variance = DECAY * (self.variance + (1 - DECAY) * off * off)

    def limit(self, sigmas: float) -> float:
        """The loss beyond which training has diverged: mean + `sigmas` standard deviations; infinite at first."""
        return math.inf if self.mean is None else self.mean + sigmas * math.sqrt(self.variance)

    def predicted(self, steps: int) -> float | None:
        """The loss `steps` true steps ahead; None before the third loss."""
        return math.exp(self.damped.forecast(steps)) if self.damped.count >= 3 else None

    def values(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return {"mean": self.mean, "variance": self.variance, **self.damped.state().values}

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore `values`."""
        self.mean = None if values["mean"] is None else float(values["mean"])
        self.variance = float(values["variance"])
        self.damped.load(Part(values={name: values[name] for name in Trend.NAMES}))
