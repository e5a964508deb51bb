"""The dynamics model beside a training: predicted losses, and a calibrated probability that a jump is accepted."""

from __future__ import annotations

import math

import numpy as np
import torch

from gpuworkbench.hybrid.calibration import Calibrator
from gpuworkbench.hybrid.components import NoAdvice, Outcome
from gpuworkbench.hybrid.dynamics.model import Dynamics
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.signals import StepSignals

SCORES = ("progress", "log horizon", "expected drop", "last drop", "loss spread")


class DynamicsAdvice(PlainState, NoAdvice):
    """Scores of a jump -> its probability; judged by the Brier score before each outcome is learnt."""

    NAMES = ("progress", "last_drop", "asked")
    CHILDREN = ("model", "calibrator")
    wants_moments = True

    def __init__(self, seed: int, step_flops: float, device: torch.device) -> None:
        self.seed, self.step_flops, self.device = seed, step_flops, device
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.model = Dynamics(self.seed, self.step_flops, self.device)
        self.calibrator = Calibrator(len(SCORES))
        self.progress, self.last_drop = 0.0, 0.0
        self.asked: list[float] = []  # scores of the jump that was judged last

    def observe(self, signals: StepSignals) -> None:
        """Learn from it."""
        self.progress = signals.step / max(signals.max_steps, 1)
        self.model.observe(signals)

    def confidence(self, horizon: int) -> float | None:
        """See the class; 0.5 before the first outcome."""
        return self.calibrator.probability(self.scores(horizon))

    def predicted_loss(self, steps: int) -> float | None:
        """The forecast's median, None before the second step."""
        return self.model.forecast(steps).loss if self.model.features.count > 1 else None

    def latent(self) -> np.ndarray | None:
        """The model's state."""
        return self.model.latent()

    def judged(self, outcome: Outcome) -> None:
        """Learn whether such a jump stands."""
        self.asked = self.scores(outcome.horizon)
        self.calibrator.learn(self.asked, outcome.accepted)
        if outcome.probe_before > 0.0 and outcome.probe_after > 0.0 and math.isfinite(outcome.probe_after):
            self.last_drop = math.log(outcome.probe_before / outcome.probe_after)

    def scores(self, horizon: int) -> list[float]:
        """What the probability is a function of, each of about unit scale."""
        if self.model.features.count < 2:
            return [0.0] * len(SCORES)
        spread = max(self.model.features.loss.sd, 1e-6)
        forecast = self.model.forecast(horizon)
        return [
            2.0 * self.progress - 1.0,
            math.log2(horizon) / 3.0 - 1.0,
            (self.model.features.trend.fast - forecast.log_loss) / spread,
            self.last_drop / spread,
            math.log(spread) + 4.0,
        ]

    def reliability(self) -> tuple[float | None, tuple[tuple[float, float, int], ...]]:
        """Of all confidences that were followed by an outcome."""
        measured = self.calibrator.reliability
        return measured.brier, tuple(measured.bins())
