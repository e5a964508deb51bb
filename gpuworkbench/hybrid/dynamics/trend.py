"""The forecast that a dynamics model has to beat: a damped trend of the log-loss.

Two exponential means lag a line by known amounts, so their difference is a slope (double exponential smoothing, Brown
1956); half of it is believed (damping, Gardner and McKenzie 1985). Of persistence, plain and damped lines over 30 and
50 steps and this one, this had the smallest error over 5 to 20 steps on recorded runs.
"""

from __future__ import annotations

from gpuworkbench.hybrid.plain_state import PlainState

FAST, SLOW = 0.9, 0.97
DAMPING = 0.5
FARTHEST = 50.0  # steps: no trend is believed beyond


class Trend(PlainState):
    """Level and slope of a series."""

    NAMES = ("fast", "slow", "count")

    def __init__(self) -> None:
        self.fast, self.slow, self.count = 0.0, 0.0, 0

    def push(self, value: float) -> None:
        """The next value."""
        self.count += 1
        for name, decay in (("fast", FAST), ("slow", SLOW)):
            keep = min(decay, 1.0 - 1.0 / self.count)
            setattr(self, name, keep * getattr(self, name) + (1.0 - keep) * value)

    @property
    def slope(self) -> float:
        """Change a step; the lags are those of the means at their age, so that the first steps count too."""
        lags = [min(decay / (1.0 - decay), (self.count - 1) / 2.0) for decay in (FAST, SLOW)]
        return (self.fast - self.slow) / (lags[1] - lags[0]) if lags[1] > lags[0] + 1.0 else 0.0

    def forecast(self, steps: float) -> float:
        """The expected value `steps` steps after the last one."""
        lag = min(FAST / (1.0 - FAST), (self.count - 1) / 2.0) if self.count else 0.0
        return self.fast + DAMPING * self.slope * (lag + min(steps, FARTHEST))
