"""Coefficients over the last displacements, learnt from hindsight: what would have given the next displacement.

With D the last m displacements of a layer group, G = D^T D, and the displacement d that then really came, the best
coefficients are c* = (G + ridge)^-1 D^T d: known exactly one look later, from dot products alone. All is in units of
the newest displacement's length, so that what is learnt early holds late.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from gpuworkbench.hybrid.plain_state import PlainState

M = 5
N_INPUTS = 2 * (M - 1) + (M - 2)
TARGET_RIDGE = 1e-2  # of the mean diagonal of G
RLS_RIDGE = 3.0
FORGETTING = 0.995
HIDDEN = 16
LR, BETA1, BETA2, EPS = 3e-3, 0.9, 0.99, 1e-8
LIMIT = 1.5  # of a coefficient: beyond is noise


class Lesson(NamedTuple):
    """What one look back teaches: inputs (N_INPUTS,), and in unit displacements G (M, M), b = D^T d (M,), |d|^2."""

    inputs: np.ndarray
    gram: np.ndarray
    products: np.ndarray
    square: float

    @property
    def target(self) -> np.ndarray:
        """c* (M,) over unit displacements."""
        ridge = TARGET_RIDGE * float(np.trace(self.gram)) / M
        return np.clip(np.linalg.solve(self.gram + ridge * np.eye(M), self.products), -LIMIT, LIMIT)


def lesson(gram: np.ndarray, products: np.ndarray, square: float) -> Lesson:
    """From the Gram matrix of the M displacements (oldest first), their products with the next, and its square."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    unit = lengths[-1]
    return Lesson(
        inputs_of(gram), gram / np.outer(lengths, lengths), products / (lengths * unit), square / float(unit * unit)
    )


def inputs_of(gram: np.ndarray) -> np.ndarray:
    """(N_INPUTS,): cosines of each displacement with the newest and with the next, and their lengths against its."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    cosines = gram / np.outer(lengths, lengths)
    ratios = np.clip(np.log(lengths[:-1] / lengths[-1]), -3.0, 3.0)
    return np.concatenate((cosines[:-1, -1], ratios, np.diag(cosines, 1)[: M - 2]))


def weights_of(unit_coefficients: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Coefficients over the displacements themselves, from those over unit ones."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    return unit_coefficients * lengths[-1] / lengths


class LinearCoefficients(PlainState):
    """Recursive least squares with forgetting from `n_inputs` inputs to the target."""

    NAMES = ("count",)
    TENSORS = ("gram", "sums")

    def __init__(self, n_inputs: int = N_INPUTS) -> None:
        self.gram = RLS_RIDGE * torch.eye(n_inputs + 1, dtype=torch.float64)
        self.gram[-1, -1] = 0.1  # the mean is learnt at once
        self.sums = torch.zeros(n_inputs + 1, M, dtype=torch.float64)
        self.count = 0

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """c (M,) over unit displacements."""
        weights = np.linalg.solve(self.gram.numpy(), self.sums.numpy())
        return np.clip(np.append(inputs, 1.0) @ weights, -LIMIT, LIMIT)

    def learn(self, taught: Lesson) -> None:
        """One lesson."""
        row = np.append(taught.inputs, 1.0)
        prior = RLS_RIDGE * np.eye(len(row))
        prior[-1, -1] = 0.1
        gram, sums = self.gram.numpy(), self.sums.numpy()
        gram *= FORGETTING
        gram += (1.0 - FORGETTING) * prior + np.outer(row, row)
        sums *= FORGETTING
        sums += np.outer(row, taught.target)
        self.count += 1


class MlpCoefficients(PlainState):
    """One hidden layer, trained by Adam on what the displacement really misses: |d - D c|^2 / |d|^2, through G."""

    NAMES = ("count",)
    TENSORS = ("flat", "adam_m", "adam_v")

    def __init__(self, n_inputs: int = N_INPUTS, seed: int = 0) -> None:
        self.n_inputs = n_inputs
        draws = np.random.Generator(np.random.PCG64(seed))
        first = draws.standard_normal((n_inputs, HIDDEN)) / n_inputs**0.5
        parts = (first, np.zeros(HIDDEN), np.zeros((HIDDEN, M)), np.zeros(M))
        self.flat = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        self.adam_m, self.adam_v = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.count = 0

    def _parts(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        a, b = self.n_inputs * HIDDEN, HIDDEN * M
        return (
            flat[:a].reshape(self.n_inputs, HIDDEN),
            flat[a : a + HIDDEN],
            flat[a + HIDDEN : a + HIDDEN + b].reshape(HIDDEN, M),
            flat[a + HIDDEN + b :],
        )

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """c (M,) over unit displacements."""
        w1, b1, w2, b2 = self._parts(self.flat.numpy())
        return np.clip(np.tanh(inputs @ w1 + b1) @ w2 + b2, -LIMIT, LIMIT)

    def learn(self, taught: Lesson) -> None:
        """One step down the gradient of the relative error."""
        grad = np.zeros_like(self.flat.numpy())
        w1, b1, w2, b2 = self._parts(self.flat.numpy())
        hidden = np.tanh(taught.inputs @ w1 + b1)
        back = 2.0 * (taught.gram @ (hidden @ w2 + b2) - taught.products) / max(taught.square, 1e-12)
        g1, gb1, g2, gb2 = self._parts(grad)
        g2[:], gb2[:] = np.outer(hidden, back), back
        inner = (w2 @ back) * (1.0 - hidden * hidden)
        g1[:], gb1[:] = np.outer(taught.inputs, inner), inner
        grad *= min(1.0, 1.0 / (float(np.linalg.norm(grad)) + 1e-12))
        self.count += 1
        m, v, flat = self.adam_m.numpy(), self.adam_v.numpy(), self.flat.numpy()
        m += (1.0 - BETA1) * (grad - m)
        v += (1.0 - BETA2) * (grad * grad - v)
        scale = (1.0 - BETA2**self.count) ** 0.5 / (1.0 - BETA1**self.count)
        flat -= LR * scale * m / (np.sqrt(v) + EPS)


def slow_path(unit_next: np.ndarray, gram: np.ndarray, ahead: float) -> np.ndarray:
    """Coefficients (M,) over the displacements of the move from the weights to their average over the last M + 1 looks
    and the next `ahead` ones, which are `unit_next` continued. Without the last noisy step: its noise averages out."""
    window = list(np.eye(M))
    step = weights_of(unit_next, gram)
    total, weight = np.zeros(M), 1.0
    position = np.zeros(M)
    for back in reversed(range(M)):
        position = position - window[back]
        total, weight = total + position, weight + 1.0
    position = np.zeros(M)
    while ahead > 0.0:
        following = np.stack(window[-M:]).T @ step
        window.append(following)
        position = position + following
        share = min(ahead, 1.0)
        total, weight, ahead = total + share * position, weight + share, ahead - 1.0
    return total / weight
