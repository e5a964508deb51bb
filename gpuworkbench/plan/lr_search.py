"""The learning-rate search as pure functions: which rates to try next, and what the trials say.

Stage one, the range test (Smith 2015, "Cyclical Learning Rates for Training Neural Networks", section 3.3): one short
run whose rate rises exponentially until its loss does; below where the loss was lowest lies the grid. Stage two:
a whole short training for every rate of a geometric grid and every seed. The grid grows where its best rate is its
lowest or highest, then the rates halfway to both neighbours of the best are tried. The next trials depend on the
finished ones only, so a search that was killed goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import NamedTuple

from msgspec import Struct

MAX_EXTENSIONS = 3  # rates that are added beyond the grid's ends
FACTOR = 2.0  # between two neighbours of the grid that a range test chose
DEFAULT_POINTS = 5
RANGE_TEST_STEPS = 100
SMOOTHING = 0.8  # weight of the past in the smoothed loss of a range test
LOST_GAIN = 0.5  # a range test ends when it has lost this share of what it had gained
LEAST_RISE = 0.3  # nats; less than that is noise
HORIZON_EXPONENT = -0.32  # best rate against tokens (Bjorck et al. 2025, "Scaling Optimal LR Across Token Horizons")


class SearchPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is searched for. `grid` None: a range test places it. `adapts`: the grid grows and is refined."""

    preset: str
    label: str
    steps: int
    full_steps: int  # what the preset trains, which the search is a short stand-in for
    seeds: tuple[int, ...]
    lr_range: tuple[float, float]
    range_steps: int
    grid: tuple[float, ...] | None = None
    factor: float = FACTOR
    adapts: bool = True


class RangeTest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates and training losses of the range test, in order; `None` is a loss that was no number."""

    lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    seconds: float


class Trial(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One short training. `diverged` says how, and is empty for a sound one."""

    lr: float
    seed: int
    losses: tuple[float | None, ...]
    val_loss: float | None
    diverged: str = ""
    seconds: float


class Work(NamedTuple):
    """A trial to do."""

    lr: float
    seed: int


class Rate(NamedTuple):
    """What all trials of one rate say. `val_loss` is None where one of them diverged; `spread` is max - min."""

    lr: float
    val_loss: float | None
    spread: float
    n_seeds: int
    diverged: str


def rounded(lr: float) -> float:
    """The rate with three digits: what a person types."""
    return float(f"{lr:.2e}")


def geometric_grid(low: float, high: float, points: int) -> tuple[float, ...]:
    """`points` rates from `low` to `high`, each the same multiple of the one before."""
    if points == 1:
        return (rounded(math.sqrt(low * high)),)
    ratio = (high / low) ** (1 / (points - 1))
    return tuple(dict.fromkeys(rounded(low * ratio**index) for index in range(points)))


def range_test_lrs(plan: SearchPlan) -> list[float]:
    """The rate of each step of the range test."""
    low, high = plan.lr_range
    last = max(plan.range_steps - 1, 1)
    return [low * (high / low) ** (index / last) for index in range(plan.range_steps)]


def smoothed(losses: Iterable[float | None]) -> list[float]:
    """Exponential moving average, its start corrected as in Adam; ends before the first loss that is no number."""
    result: list[float] = []
    average = 0.0
    for count, loss in enumerate(losses, start=1):
        if loss is None or not math.isfinite(loss):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        result.append(average / (1 - SMOOTHING**count))
    return result


def has_diverged(losses: Sequence[float | None]) -> bool:
    """Whether a range test is past its best: no number, or the smoothed loss rose by half of what it had fallen."""
    if not losses:
        return False
    curve = smoothed(losses)
    if len(curve) < len(losses):
        return True
    lowest = min(curve)
    return curve[-1] > lowest + max(LOST_GAIN * (curve[0] - lowest), LEAST_RISE)


def lr_of_lowest_loss(test: RangeTest) -> float:
    """The rate at which the smoothed loss of a range test was lowest; its first rate where no loss was a number."""
    curve = smoothed(test.losses)
    return test.lrs[curve.index(min(curve))] if curve else test.lrs[0]


def first_grid(plan: SearchPlan, test: RangeTest | None) -> tuple[float, ...]:
    """The rates to begin with: as asked for, else around half the rate at which the range test's loss was lowest."""
    if plan.grid is not None:
        return plan.grid
    assert test is not None
    centre = lr_of_lowest_loss(test) / 2
    half = (DEFAULT_POINTS - 1) / 2
    return geometric_grid(centre * plan.factor**-half, centre * plan.factor**half, DEFAULT_POINTS)


def next_trials(plan: SearchPlan, test: RangeTest | None, trials: Sequence[Trial]) -> list[Work]:
    """What is still to do of the stage that the search is in, interleaved over seeds; empty when it is done."""
    rates = list(first_grid(plan, test))
    for _ in range(MAX_EXTENSIONS + 1):
        todo = _missing(plan, rates, trials)
        if todo or not plan.adapts:
            return todo
        beyond = _beyond(plan, rates, trials)
        if beyond is None or len(rates) - len(first_grid(plan, test)) == MAX_EXTENSIONS:
            break
        rates.append(beyond)
    return _missing(plan, _halfway(plan, rates, trials), trials)


def summarize(trials: Iterable[Trial]) -> list[Rate]:
    """Every rate that was tried, from the lowest."""
    by_lr: dict[float, list[Trial]] = {}
    for trial in trials:
        by_lr.setdefault(trial.lr, []).append(trial)
    return [_rate(lr, by_lr[lr]) for lr in sorted(by_lr)]


def ranked(rates: Iterable[Rate]) -> list[Rate]:
    """The best first; those that diverged last."""
    return sorted(rates, key=lambda rate: (math.inf if rate.val_loss is None else rate.val_loss, rate.lr))


def best_of(trials: Iterable[Trial]) -> Rate | None:
    """The rate with the lowest mean validation loss, None where all diverged."""
    first = next(iter(ranked(summarize(trials))), None)
    return first if first is not None and first.val_loss is not None else None


def notes(plan: SearchPlan, trials: Sequence[Trial]) -> list[str]:
    """What to know before the best rate is used, a line each."""
    rates, best = summarize(trials), best_of(trials)
    if best is None:
        return []
    said = []
    edge = {rates[0].lr: "lowest", rates[-1].lr: "highest"}.get(best.lr) if len(rates) > 1 else "only"
    if edge:
        said.append(f"the best rate is the {edge} that was tried: a better one may lie beyond")
    second = next((rate for rate in ranked(rates)[1:] if rate.val_loss is not None), None)
    if len(plan.seeds) == 1:
        said.append("one seed: how far a rate's loss varies is not known; --seeds 3 measures it")
    elif second is not None and best.val_loss is not None and second.val_loss is not None:
        spread = max(best.spread, second.spread)
        if second.val_loss - best.val_loss <= spread:
            said.append(f"{best.lr:g} and {second.lr:g} are closer than their spread over seeds ({spread:.3f}): a tie")
    if plan.full_steps > plan.steps:
        ratio = plan.full_steps / plan.steps
        likely = rounded(best.lr * ratio**HORIZON_EXPONENT)
        said.append(
            f"found at {plan.steps} steps; the preset trains {plan.full_steps}, and the best rate falls with length: "
            f"perhaps {likely:g} there (a rule of thumb, steps^{HORIZON_EXPONENT})"
        )
    return said


def _missing(plan: SearchPlan, rates: Iterable[float], trials: Sequence[Trial]) -> list[Work]:
    done = {(trial.lr, trial.seed) for trial in trials}
    return [Work(lr, seed) for seed in plan.seeds for lr in rates if (lr, seed) not in done]


def _beyond(plan: SearchPlan, rates: Sequence[float], trials: Sequence[Trial]) -> float | None:
    """The next rate outside, where the best of `rates` is at an end of them; all diverged: well below."""
    low, high = min(rates), max(rates)
    best = best_of(trial for trial in trials if trial.lr in rates)
    if best is None:
        return rounded(low / plan.factor**2)
    if best.lr == high:
        return rounded(high * plan.factor)
    return rounded(low / plan.factor) if best.lr == low else None


def _halfway(plan: SearchPlan, rates: Sequence[float], trials: Sequence[Trial]) -> list[float]:
    """The rates between the best and each of its neighbours."""
    best = best_of(trial for trial in trials if trial.lr in rates)
    if best is None:
        return []
    ordered = sorted(rates)
    place = ordered.index(best.lr)
    return [rounded(math.sqrt(best.lr * lr)) for lr in ordered[max(place - 1, 0) : place + 2] if lr != best.lr]


def _rate(lr: float, trials: Sequence[Trial]) -> Rate:
    diverged = next((trial.diverged for trial in trials if trial.diverged), "")
    losses = [trial.val_loss for trial in trials if trial.val_loss is not None]
    if diverged or not losses:
        return Rate(lr, None, 0.0, len(trials), diverged or "no validation loss")
    return Rate(lr, mean(losses), max(losses) - min(losses), len(trials), "")
