"""Time left, from what this run measured: steps, validations and checkpoints at the intervals they came at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median_low

_RECENT = 5


def remaining_s(
    step: int,
    max_steps: int | None,
    step_time_s: float | None,
    evals: Sequence[tuple[int, float]],
    checkpoints: Sequence[tuple[int, float]],
    *,
    steps_s: float | None = None,
) -> float | None:
    """Seconds until `max_steps`; `None` where the step time or the end is unknown.

    `evals` and `checkpoints` are (step, seconds that training waited), oldest first. A checkpoint is always written
    at the last step. `steps_s` is how long the steps left take where they are not all as long as the last ones.
    """
    if max_steps is None or step_time_s is None:
        return None
    left = max(max_steps - step, 0)
    saved_at = [at for at, _ in checkpoints]
    n_checkpoints = _still_to_come(step, max_steps, saved_at)
    if left and any(saved_at) and max_steps % _interval(saved_at):
        n_checkpoints += 1
    return (
        (left * step_time_s if steps_s is None else steps_s)
        + _still_to_come(step, max_steps, [at for at, _ in evals]) * _recent_mean([s for _, s in evals])
        + n_checkpoints * _recent_mean([s for _, s in checkpoints])
    )


def _interval(steps: Sequence[int]) -> int:
    """The usual number of steps from one to the next: a median, since one asked for by hand comes out of turn."""
    distinct = sorted({0, *steps})
    gaps = [later - earlier for earlier, later in pairwise(distinct)]
    return median_low(gaps[-_RECENT:])


def _still_to_come(step: int, max_steps: int, steps: Sequence[int]) -> int:
    """How many more come in (step, max_steps] at the measured interval; none where it is not known yet."""
    if not any(steps):
        return 0
    interval = _interval(steps)
    return max(max_steps // interval - step // interval, 0)


def _recent_mean(seconds: Sequence[float]) -> float:
    recent = seconds[-_RECENT:]
    return sum(recent) / len(recent) if recent else 0.0
