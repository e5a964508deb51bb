"""What all predictions of a run sum up to: how reliable their confidence was, and how each choice of a jump did.

A confidence claims the probability that its jump will be accepted. The Brier score (Brier 1950) is the mean squared
difference between claim and outcome: 0 is perfect, and always claiming the share of accepted jumps scores
share x (1 - share). Bins tell claimed from observed: the reliability diagram as numbers.
"""

from __future__ import annotations

import math

import msgspec
from msgspec import Struct, field

from gpuworkbench.events.schema import Prediction

N_BINS = 5
MAX_ARMS = 32  # names of predictors come from the log, which is foreign
OTHER = ("other", 0)


class ReliabilityBin(Struct):
    """Predictions whose confidence lay in one fifth of 0 to 1."""

    count: int = 0
    accepted: int = 0
    confidence_sum: float = 0.0
    squared_error_sum: float = 0.0

    @property
    def claimed(self) -> float | None:
        """The mean confidence; None without a prediction."""
        return self.confidence_sum / self.count if self.count else None

    @property
    def observed(self) -> float | None:
        """The share that was accepted."""
        return self.accepted / self.count if self.count else None


class Arm(Struct):
    """One choice the bandit has: a predictor and a horizon. `gain_sum`: probe losses that accepted jumps took off."""

    predictor: str
    horizon_steps: int
    tried: int = 0
    accepted: int = 0
    gain_sum: float = 0.0

    @property
    def mean_gain(self) -> float | None:
        """Nats per jump that was tried: a rejected one was undone and gained nothing."""
        return self.gain_sum / self.tried if self.tried else None


class PredictionTally(Struct):
    """Sums over predictions; `count` with -1 takes one back that a resume made void."""

    bins: list[ReliabilityBin] = field(default_factory=lambda: [ReliabilityBin() for _ in range(N_BINS)])
    arms: list[Arm] = field(default_factory=list)

    def count(self, event: Prediction, sign: int = 1) -> None:
        """Add a prediction, or take one away."""
        confidence = event.confidence
        if confidence is not None and 0.0 <= confidence <= 1.0:
            found = self.bins[min(int(confidence * N_BINS), N_BINS - 1)]
            found.count += sign
            found.accepted += sign * event.accepted
            found.confidence_sum += sign * confidence
            found.squared_error_sum += sign * (confidence - event.accepted) ** 2
        arm = self._arm(event.predictor, event.horizon_steps)
        arm.tried += sign
        arm.accepted += sign * event.accepted
        if event.accepted and event.probe_before is not None and event.probe_after is not None:
            gain = event.probe_before - event.probe_after
            arm.gain_sum += sign * gain if math.isfinite(gain) else 0.0

    def copy(self) -> PredictionTally:
        """One that stays as it is."""
        replace = msgspec.structs.replace
        return PredictionTally([replace(one) for one in self.bins], [replace(one) for one in self.arms])

    @property
    def brier(self) -> float | None:
        """The Brier score of all predictions with a confidence; None where there is none."""
        count = sum(found.count for found in self.bins)
        return max(sum(found.squared_error_sum for found in self.bins), 0.0) / count if count > 0 else None

    def _arm(self, predictor: str, horizon_steps: int) -> Arm:
        key = (predictor, horizon_steps)
        for arm in self.arms:
            if (arm.predictor, arm.horizon_steps) == key:
                return arm
        if len(self.arms) >= MAX_ARMS and key != OTHER:
            return self._arm(*OTHER)
        self.arms.append(Arm(*key))
        return self.arms[-1]
