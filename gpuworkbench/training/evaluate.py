"""Validation and early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from gpuworkbench.config.schema import EarlyStoppingConfig
from gpuworkbench.models.head import IGNORE_INDEX
from gpuworkbench.training.memory_errors import first_line, is_out_of_memory, let_go
from gpuworkbench.training.state import Progress


class Validation(NamedTuple):
    """Token-weighted mean loss in nats over `tokens` scored target tokens; NaN where there is none."""

    loss: float
    tokens: int
    duration_s: float


Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Rows:
    """How many sequences of a validation batch are evaluated at once: all, until memory does not hold them."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self._news: list[tuple[int, str]] = []

    def of(self, available: int) -> int:
        """Sequences to take of so many."""
        return available if self.limit is None else min(self.limit, available)

    def halve(self, size: int, reason: str) -> None:
        """`size` were too many, for the rest of the attempt."""
        self.limit = size // 2
        self._news.append((self.limit, reason))

    def take_news(self) -> list[tuple[int, str]]:
        """Each new limit with the reason for it, told once."""
        news, self._news = self._news, []
        return news


@torch.no_grad()
def evaluate(
    forward: Forward,
    model: torch.nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    rows: Rows | None = None,
) -> Validation:
    """Mean loss over the batches in evaluation mode; the mode is restored, no generator is touched.

    A batch that does not fit is evaluated in halves, quarters, ...: weighted by tokens, the mean is the same.
    Raises torch.OutOfMemoryError where a single sequence does not fit.
    """
    rows = rows or Rows()
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    try:
        total: torch.Tensor | None = None
        tokens: torch.Tensor | int = 0
        for x, y in batches:
            for loss, scored in _summed_losses(forward, x, y, rows):
                total = loss if total is None else total + loss
                tokens = tokens + scored
        mean = math.nan if total is None else (total / tokens).item()
    finally:
        model.train(was_training)
    return Validation(mean, int(tokens), time.perf_counter() - started)


def _summed_losses(
    forward: Forward, x: torch.Tensor, y: torch.Tensor, rows: Rows
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Summed loss and number of scored tokens, of as many sequences at a time as memory holds."""
    start = 0
    while start < len(x):
        size = rows.of(len(x) - start)
        part = slice(start, start + size)
        try:
            scored = (y[part] != IGNORE_INDEX).sum()
            # float64 sums: the order of a few thousand float32 additions would show in the last digits.
            loss = forward(x[part], y[part]).double() * scored
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            reason = first_line(error)
            let_go(error)
        else:
            yield loss, scored
            start += size
            continue
        torch.cuda.empty_cache()  # here: within the handler the exception still holds what did not fit
        rows.halve(size, reason)


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
