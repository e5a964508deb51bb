"""Corrects predictions by what like predictions missed before: nearest residuals and an online linear model.

Two experts guess the residual (actual minus predicted) of a prediction from the state of the training: the mean of
the k nearest remembered residuals, newer ones weighing more, and recursive least squares with forgetting (Haykin,
Adaptive Filter Theory, ch. 10; the ridge stays when evidence fades). How much of each guess is believed is measured
before it is learnt from, with a prior of nothing: where the past says nothing, nothing is corrected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gpuworkbench.hybrid.plain_state import PlainState

NEIGHBOURS = 10
CAPACITY = 128  # residuals remembered
RECENCY = 40.0  # residuals after which a memory weighs 1/e
FORGETTING = 0.98
RIDGE = 30.0
TRUST_DECAY = 0.98
TRUST_PRIOR = 5.0  # evidence for believing nothing, in squared scaled guesses


class Corrector(PlainState):
    """Corrections (n_outputs,) for inputs (n_inputs,) of about unit scale."""

    NAMES = ("count", "xy", "xx", "yy")
    TENSORS = ("inputs", "residuals", "gram", "sums")

    def __init__(self, n_inputs: int, n_outputs: int = 1) -> None:
        self.inputs = torch.zeros(CAPACITY, n_inputs, dtype=torch.float64)
        self.residuals = torch.zeros(CAPACITY, n_outputs, dtype=torch.float64)
        self.gram = RIDGE * torch.eye(n_inputs + 1, dtype=torch.float64)
        self.sums = torch.zeros(n_inputs + 1, n_outputs, dtype=torch.float64)
        self.count = 0
        self.xy = [0.0, 0.0]  # of the experts' guesses with what came, over their own squares (xx)
        self.xx = [0.0, 0.0]
        self.yy = 0.0  # running mean square of the residuals: their unit

    def guesses(self, inputs: Sequence[float]) -> np.ndarray:
        """(2, n_outputs): the nearest residuals' and the linear model's."""
        x = np.asarray(inputs, dtype=np.float64)
        linear = np.linalg.solve(self.gram.numpy(), self.sums.numpy()).T @ np.append(x, 1.0)
        return np.stack((self._nearest(x), linear))

    def correction(self, inputs: Sequence[float]) -> np.ndarray:
        """What is to be added to a prediction, (n_outputs,)."""
        trust = np.asarray(self.trust)
        if not trust.any():
            return np.zeros(self.residuals.shape[1])
        return (trust[:, None] * self.guesses(inputs)).sum(0) / max(1.0, np.count_nonzero(trust))

    @property
    def trust(self) -> list[float]:
        """Share of each expert's guess that is believed, 0 to 1."""
        pairs = zip(self.xy, self.xx, strict=True)
        return [max(0.0, min(1.0, xy / (xx + TRUST_PRIOR))) for xy, xx in pairs]

    def learn(self, inputs: Sequence[float], residual: Sequence[float]) -> None:
        """A prediction made at `inputs` missed by `residual`: judge the experts by it, then teach them."""
        x, y = np.asarray(inputs, dtype=np.float64), np.asarray(residual, dtype=np.float64)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return
        weight = max(1.0 - TRUST_DECAY, 1.0 / (self.count + 1))
        self.yy += weight * (float((y * y).mean()) - self.yy)
        unit = max(self.yy, 1e-18)
        y = np.clip(y, -4.0 * unit**0.5, 4.0 * unit**0.5)
        for expert, guess in enumerate(self.guesses(inputs)):
            self.xy[expert] = TRUST_DECAY * self.xy[expert] + float(guess @ y) / unit
            self.xx[expert] = TRUST_DECAY * self.xx[expert] + float(guess @ guess) / unit
        row = np.append(x, 1.0)
        gram, sums = self.gram.numpy(), self.sums.numpy()
        gram *= FORGETTING
        gram += (1.0 - FORGETTING) * RIDGE * np.eye(len(row)) + np.outer(row, row)
        sums *= FORGETTING
        sums += np.outer(row, y)
        self.inputs.numpy()[self.count % CAPACITY] = x
        self.residuals.numpy()[self.count % CAPACITY] = y
        self.count += 1

    def _nearest(self, x: np.ndarray) -> np.ndarray:
        kept = min(self.count, CAPACITY)
        if not kept:
            return np.zeros(self.residuals.shape[1])
        distances = np.square(self.inputs.numpy()[:kept] - x).sum(1)
        nearest = np.argsort(distances, kind="stable")[:NEIGHBOURS]
        ages = (self.count - 1 - nearest) % CAPACITY
        weights = np.exp(-ages / RECENCY)
        return weights @ self.residuals.numpy()[nearest] / max(weights.sum(), 1e-300)
