"""What a jump brought: the losses of the true steps after it against what the trend before it promised.

The probe says at once whether a jump is harmless; whether it *pays* shows in the steps that follow. Windows of WINDOW
true steps are compared with the damped trend's forecast from before them. Windows without a jump do the same, and what
they miss on average is the forecast's own bias, which is subtracted.
"""

from __future__ import annotations

import math

from gpuworkbench.hybrid.dynamics.trend import Trend
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.running import RunningLevel

WINDOW = 8
MIN_LOSSES = 4
CONTROL_DECAY = 0.9


class BenefitMeter(PlainState):
    """Give it every true loss and tell it of jumps that stand; `push` returns the gain when a window after one ends."""

    NAMES = ("promised", "total", "count", "follows_jump")
    CHILDREN = ("trend", "control")

    def __init__(self) -> None:
        self.trend = Trend()
        self.control = RunningLevel(CONTROL_DECAY)
        self.promised, self.total, self.count = 0.0, 0.0, 0
        self.follows_jump = False

    @property
    def rate(self) -> float:
        """Drop of log-loss a true step brings now; at least 0."""
        return max(0.0, -self.trend.slope)

    def jumped(self) -> None:
        """A jump stands: a window begins here."""
        self._begin(follows_jump=True)

    def cut(self) -> float | None:
        """The window after a jump ends here, since another jump may follow; the gain so far, None of too few losses."""
        is_known = self.follows_jump and self.count >= MIN_LOSSES
        gain = self.promised - self.total / self.count - self.control.mean if is_known else None
        self._begin(follows_jump=False)
        return gain

    def undone(self) -> None:
        """The weights are those before the jump again: the window says nothing of it."""
        self._begin(follows_jump=False)

    def push(self, loss: float) -> float | None:
        """A true loss. Returns the gain in log-loss, the bias subtracted, when a window after a jump is over."""
        if not (math.isfinite(loss) and loss > 0.0):
            return None
        log_loss, gain = math.log(loss), None
        self.total += log_loss
        self.count += 1
        self.trend.push(log_loss)
        if self.count == WINDOW:
            miss = self.promised - self.total / WINDOW
            if self.follows_jump:
                gain = miss - self.control.mean
            elif self.trend.count > 4 * WINDOW:
                self.control.push(miss)
            self._begin(follows_jump=False)
        return gain

    def _begin(self, *, follows_jump: bool) -> None:
        self.promised = self.trend.forecast((WINDOW + 1) / 2.0)
        self.total, self.count = 0.0, 0
        self.follows_jump = follows_jump
