"""The running level of the training loss: what counts as divergence after a jump, and a first guess of what comes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DECAY = 0.9  # of the running mean and variance: about the last ten steps
WINDOW = 32  # losses that the straight line is fitted to


class LossTrend:
    """Exponentially weighted mean and variance of the losses of true steps, and the last few of them."""

    def __init__(self) -> None:
        self.mean: float | None = None
        self.variance = 0.0
        self.recent: list[float] = []

    def observe(self, loss: float) -> None:
        """One more true step; a loss that is no number is left out."""
        if not math.isfinite(loss):
            return
        self.recent = [*self.recent[1 - WINDOW :], loss]
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
        """The loss `steps` true steps ahead on the least-squares line through the last ones; None below three."""
        n = len(self.recent)
        if n < 3:
            return None
        middle, level = (n - 1) / 2, sum(self.recent) / n
        covariance = sum((i - middle) * loss for i, loss in enumerate(self.recent))
        slope = covariance / (n * (n * n - 1) / 12)
        return level + slope * (n - 1 - middle + steps)

    def values(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return {"mean": self.mean, "variance": self.variance, "recent": list(self.recent)}

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore `values`."""
        self.mean = None if values["mean"] is None else float(values["mean"])
        self.variance, self.recent = float(values["variance"]), [float(loss) for loss in values["recent"]]
