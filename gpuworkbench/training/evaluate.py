"""Validation and early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from gpuworkbench.config.schema import EarlyStoppingConfig
from gpuworkbench.models.head import IGNORE_INDEX
from gpuworkbench.training.state import Progress


class Validation(NamedTuple):
    """Token-weighted mean loss in nats over `tokens` scored target tokens; NaN where there is none."""

    loss: float
    tokens: int
    duration_s: float


@torch.no_grad()
def evaluate(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model: torch.nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> Validation:
    """Mean loss over the batches in evaluation mode; the mode is restored, no generator is touched."""
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    try:
        total: torch.Tensor | None = None
        tokens: torch.Tensor | int = 0
        for x, y in batches:
            scored = (y != IGNORE_INDEX).sum()
            # float64 sums: the order of a few thousand float32 additions would show in the last digits.
            loss = forward(x, y).double() * scored
            total = loss if total is None else total + loss
            tokens = tokens + scored
        mean = math.nan if total is None else (total / tokens).item()
    finally:
        model.train(was_training)
    return Validation(mean, int(tokens), time.perf_counter() - started)


def note_validation(progress: Progress, loss: float, config: EarlyStoppingConfig) -> bool:
    """Update best and patience; returns whether this is the best so far. A non-finite loss never is."""
    progress.last_eval_step = progress.step
    best, improved = progress.best_val_loss, progress.improved_val_loss
    is_best = math.isfinite(loss) and (best is None or loss < best)
    # Compared with the last one that counted, so that many small improvements add up.
    if math.isfinite(loss) and (improved is None or loss < improved - config.min_delta):
        progress.improved_val_loss = loss
        progress.evals_without_improvement = 0
    else:
        progress.evals_without_improvement += 1
    if is_best:
        progress.best_val_loss = loss
        progress.best_step = progress.step
    return is_best


def should_stop_early(progress: Progress, config: EarlyStoppingConfig) -> bool:
    """Whether `patience` validations in a row brought no improvement of more than `min_delta`."""
    return 0 < config.patience <= progress.evals_without_improvement
