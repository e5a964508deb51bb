"""The probe: loss on sequences that are never trained on, before and after a jump, and what follows from the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpuworkbench.config.predictors import GUARD_STANDARD_ERRORS, Rule
from gpuworkbench.models.head import IGNORE_INDEX

Forward = Callable[[Tensor, Tensor], Tensor]


class ProbeLoss(NamedTuple):
    """Losses of the probe's sequences in nats, each with its scored tokens, and their token-weighted mean."""

    losses: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats per scored token; NaN where there is none."""
        pairs = [(loss, count) for loss, count in zip(self.losses, self.counts, strict=True) if count]
        total = sum(count for _, count in pairs)
        return math.fsum(loss * count for loss, count in pairs) / total if total else math.nan


class Probe:
    """A fixed batch, computed one sequence at a time: as little memory as there can be, and pairs for the guard."""

    def __init__(self, forward: Forward, model: nn.Module, sequences: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.forward = forward
        self.model = model
        self.sequences = sequences  # x and y, (1, T) each

    @torch.no_grad()
    def loss(self) -> ProbeLoss:
        """The loss now, in evaluation mode, which draws no random number (one sync)."""
        was_training = self.model.training
        self.model.eval()
        try:
            losses = [self.forward(x, y).double() for x, y in self.sequences]
            counts = [(y != IGNORE_INDEX).sum().double() for _, y in self.sequences]
            rows = torch.stack([torch.stack(losses), torch.stack(counts)]).tolist()
        finally:
            self.model.train(was_training)
        return ProbeLoss(tuple(rows[0]), tuple(int(count) for count in rows[1]))


def is_accepted(rule: Rule, before: ProbeLoss, after: ProbeLoss) -> bool:
    """Whether a jump from `before` to `after` stands. A loss that is no number never does."""
    if not math.isfinite(after.mean):
        return False
    if rule == "improve":
        return after.mean < before.mean
    return after.mean - before.mean <= GUARD_STANDARD_ERRORS * paired_standard_error(before, after)


def paired_standard_error(before: ProbeLoss, after: ProbeLoss) -> float:
    """Standard error of the token-weighted mean difference over the sequences; 0 where there is only one.

    The ratio estimator of a weighted mean (Cochran 1977, "Sampling Techniques", section 6.4); with equal counts it is
    the textbook s / sqrt(n).
    """
    rows = [
        (new - old, count) for old, new, count in zip(before.losses, after.losses, before.counts, strict=True) if count
    ]
    n, total = len(rows), sum(count for _, count in rows)
    if n < 2:
        return 0.0
    mean = math.fsum(difference * count for difference, count in rows) / total
    squares = math.fsum((count * (difference - mean)) ** 2 for difference, count in rows)
    return math.sqrt(n / (n - 1) * squares) / total
