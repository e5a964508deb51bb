"""Corrects a proposal by what such proposals missed before, as far as that has proved right.

    c = mean of the nearest residuals (actual - predicted displacement), newer ones weighing more, at this horizon
    delta = (1 + a_g) p + b_g c          p: as predicted; one a and b for each layer group g

a and b are the ridge regression of earlier shadow proposals' residuals on their p and c, online: each in units of its
own residual, fading, towards nothing. A proposal that goes too far gets a < 0, one that misses the same again b > 0;
where the past says nothing of the next miss, products with it are as often below 0 as above, and both end near 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpuworkbench.hybrid.corrector import NEIGHBOURS, RECENCY
from gpuworkbench.hybrid.layer_groups import group_of, layer_groups
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.residuals import Residual

FORGETTING = 0.95  # of the evidence, a shadow proposal
PRIOR = 1.0  # evidence for believing nothing: one residual that c explains wholly


class Gains(PlainState):
    """(a, b) by key. `sums`: <p, p>, <p, c>, <c, c>, <r, p>, <r, c> of the residuals r so far, each over <r, r>."""

    NAMES = ("sums",)

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def of(self, key: str) -> tuple[float, float]:
        """a, -1 (do not move) to 1, and b, 0 to 1; both 0 where nothing is known."""
        pp, pc, cc, rp, rc = self.sums.get(key, [0.0] * 5)
        pp, cc = pp + PRIOR, cc + PRIOR
        determinant = pp * cc - pc * pc  # at least PRIOR^2 (Cauchy-Schwarz)
        a, b = (rp * cc - rc * pc) / determinant, (rc * pp - rp * pc) / determinant
        return max(-1.0, min(1.0, a)), max(0.0, min(1.0, b))

    def learn(self, key: str, products: Sequence[float], residual_square: float) -> None:
        """The products of one proposal as `sums` has them, not yet over <r, r>."""
        if not (residual_square > 0.0 and all(map(math.isfinite, (*products, residual_square)))):
            return
        old = self.sums.get(key, [0.0] * 5)
        new = [product / residual_square for product in products]
        self.sums[key] = [FORGETTING * a + b for a, b in zip(old, new, strict=True)]


class Correction:
    """c above, for one proposal: asked weight by weight, so that no second delta is ever whole."""

    def __init__(self, kept: Sequence[Residual], predictor: str, context: Sequence[float], horizon: int) -> None:
        self.terms = [
            (weight * horizon / residual.horizon, residual) for weight, residual in nearest(kept, predictor, context)
        ]

    def of(self, name: str, device: torch.device) -> Tensor:
        """The weight's, fp32 on `device`; 0 (of no shape) before the first residual."""
        total = torch.zeros(())
        for weight, residual in self.terms:
            total = total + residual.deltas[name].full() * weight
        return total.to(device)


def nearest(kept: Sequence[Residual], predictor: str, context: Sequence[float]) -> list[tuple[float, Residual]]:
    """The predictor's residuals from states of training like `context`, with weights that sum to 1."""
    mine = [residual for residual in kept if residual.predictor == predictor]
    distances = [_distance(residual.context, context) for residual in mine]
    order = sorted(range(len(mine)), key=lambda i: (distances[i], -i))[:NEIGHBOURS]
    weights = [math.exp((i + 1 - len(mine)) / RECENCY) for i in order]
    return [(weight / sum(weights), mine[i]) for weight, i in zip(weights, order, strict=True)]


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return math.dist(one, other) if len(one) == len(other) else 0.0


def learn_gains(
    gains: Gains, predictor: str, correction: Correction, predicted: Mapping[str, Tensor], actual: Mapping[str, Tensor]
) -> float | None:
    """Learn from a proposal that has met the truth, uncorrected as it was. Returns the relative error that it would
    have had with the correction, the gains being those from before; None of weights that did not move."""
    error = norm = 0.0
    for names in layer_groups(actual):
        key = key_of(predictor, names[0])
        (a, b), sums = gains.of(key), torch.zeros(6, dtype=torch.float64)
        for name in names:
            truth = actual[name].float()
            p = predicted[name].to(truth.device).float()
            c, r = correction.of(name, truth.device), truth - p
            pairs = ((p, p), (p, c), (c, c), (r, p), (r, c), (r, r))
            sums += torch.stack([(x * y).sum() for x, y in pairs]).double().cpu()
            error += float((r - a * p - b * c).square().sum())
            norm += float(truth.square().sum())
        *products, own = sums.tolist()
        gains.learn(key, products, own)
    return math.sqrt(error / norm) if norm > 0.0 else None


def key_of(predictor: str, name: str) -> str:
    """Of the layer group that a weight belongs to."""
    return f"{predictor}/{group_of(name)}"
