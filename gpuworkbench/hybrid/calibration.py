"""Confidence as a calibrated probability: of the jumps that it gives 70 %, seven out of ten are accepted.

Platt scaling (Platt 1999: a logistic curve over a score), fitted online by Newton steps on decayed sums: a Bayesian
logistic regression whose prior is the running acceptance rate. How well it does is measured on each outcome before it
is learnt from: Brier score, and reliability bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from gpuworkbench.hybrid.plain_state import PlainState

BINS = 5
DECAY = 0.95  # of old outcomes, an outcome: jumps are few and the training moves on
PRIOR_PRECISION = 4.0  # of the weights of the score: it takes a few outcomes to believe in them
PRIOR_COUNTS = (1.0, 1.0)  # accepted, rejected: a Beta prior on the rate
LIMIT = 0.98  # no confidence beyond: a few outcomes never prove more


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p / (1.0 - p))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


class AcceptanceRate(PlainState):
    """The confidence where there is no dynamics model: the predictor's decayed share of accepted jumps."""

    NAMES = ("accepted", "rejected")

    def __init__(self, decay: float = DECAY) -> None:
        self.decay = decay
        self.accepted, self.rejected = PRIOR_COUNTS

    @property
    def rate(self) -> float:
        """The share, 0.5 before anything is known."""
        return self.accepted / (self.accepted + self.rejected)

    def learn(self, accepted: bool) -> None:
        """An outcome."""
        prior = PRIOR_COUNTS
        self.accepted = prior[0] + self.decay * (self.accepted - prior[0]) + float(accepted)
        self.rejected = prior[1] + self.decay * (self.rejected - prior[1]) + float(not accepted)


class Reliability(PlainState):
    """Scores probabilities against outcomes: the Brier score and, by bins of confidence, what came true."""

    NAMES = ("squares", "count", "confidences", "hits", "counts")

    def __init__(self) -> None:
        self.squares, self.count = 0.0, 0
        self.confidences, self.hits = [0.0] * BINS, [0.0] * BINS
        self.counts = [0] * BINS

    def note(self, confidence: float, accepted: bool) -> None:
        """A confidence that was given, and what happened."""
        self.squares += (confidence - float(accepted)) ** 2
        self.count += 1
        index = min(BINS - 1, int(confidence * BINS))
        self.confidences[index] += confidence
        self.hits[index] += float(accepted)
        self.counts[index] += 1

    @property
    def brier(self) -> float | None:
        """Mean squared error of the probabilities: 0.25 is what always saying 50 % scores. None before the first."""
        return self.squares / self.count if self.count else None

    def bins(self) -> list[tuple[float, float, int]]:
        """(mean confidence, share accepted, outcomes) of each bin that has any."""
        rows = zip(self.confidences, self.hits, self.counts, strict=True)
        return [(total / n, hits / n, n) for total, hits, n in rows if n]


class Calibrator(PlainState):
    """Probability of acceptance from a few scores (each of about -3..3) and the running acceptance rate.

    p = sigmoid(logit(rate) + w . scores + b), weights with a Gaussian prior at 0, so that it starts as the rate.
    """

    TENSORS = ("weights", "precision")
    CHILDREN = ("rate", "reliability")

    def __init__(self, n_scores: int) -> None:
        self.rate = AcceptanceRate()
        self.reliability = Reliability()
        self.weights = torch.zeros(n_scores + 1, dtype=torch.float64)
        self.precision = PRIOR_PRECISION * torch.eye(n_scores + 1, dtype=torch.float64)

    def probability(self, scores: Sequence[float]) -> float:
        """The confidence; the uncertainty of the weights draws it towards the rate (MacKay 1992)."""
        x = self._inputs(scores)
        mean = float(self.weights.numpy() @ x)
        variance = float(x @ np.linalg.solve(self.precision.numpy(), x))
        offset = mean / math.sqrt(1.0 + math.pi * variance / 8.0)
        return min(LIMIT, max(1.0 - LIMIT, sigmoid(logit(self.rate.rate) + offset)))

    def learn(self, scores: Sequence[float], accepted: bool) -> None:
        """An outcome: first held against what was said of it, then learnt (one Newton step, extended Kalman form)."""
        self.reliability.note(self.probability(scores), accepted)
        x = self._inputs(scores)
        weights, precision = self.weights.numpy(), self.precision.numpy()
        p = sigmoid(logit(self.rate.rate) + float(weights @ x))
        prior = PRIOR_PRECISION * np.eye(len(x))
        precision *= DECAY
        precision += (1.0 - DECAY) * prior
        precision += max(p * (1.0 - p), 0.05) * np.outer(x, x)
        weights += np.linalg.solve(precision, (float(accepted) - p) * x)
        self.rate.learn(accepted)

    def _inputs(self, scores: Sequence[float]) -> np.ndarray:
        clipped = [max(-3.0, min(3.0, score)) if math.isfinite(score) else 0.0 for score in scores]
        return np.asarray([*clipped, 1.0], dtype=np.float64)
