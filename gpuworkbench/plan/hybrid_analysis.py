"""What the trials of a comparison say: the time an arm takes to the baseline's loss, and its loss for equal work.

    speed-up = T_baseline(L*) / T_arm(L*)

L* is, for each seed, the tuned baseline's final validation loss at the reference budget. T(L*) is the smallest work
whose completed schedule reaches L*, interpolated between budgets in the logarithm of the work. Both sides are read off
their own curve by the same function. An arm is compared with the baseline of the same seed; the interval is the
t-interval of the mean log ratio over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal, NamedTuple

from gpuworkbench.plan.hybrid_bench import BASELINE, MIN_CLAIM_SEEDS, BenchPlan, Trial, by_arm
from gpuworkbench.plan.paired_statistics import Interval, holm, mean_interval

NO_BENEFIT = "no measurable benefit"
Bound = Literal["", "at_least", "at_most"]
Measure = Callable[[Trial], float]
MEASURES: Mapping[str, Measure] = {
    "cost": lambda trial: trial.cost_steps,
    "seconds": lambda trial: trial.seconds,
    "cpu_seconds": lambda trial: trial.cpu_seconds,
    "steps": lambda trial: float(trial.steps),
}
WORSE_LIMIT = 0.01  # of the loss, at equal tokens


class Point(NamedTuple):
    """A finished training: the work it took and the loss it ended at (infinite where it diverged)."""

    work: float
    loss: float


class Reached(NamedTuple):
    """The work to a loss. `bound`: the true work is smaller than every budget tried ("at_most"), or larger."""

    work: float
    bound: Bound


def work_to(points: Iterable[Point], target: float) -> Reached:
    """The smallest work whose loss is `target` or lower, interpolated between neighbours.

    Below the smallest budget, and above the largest, the true work is not known: that budget's is given as a bound.
    """
    ordered = sorted(points)
    if not ordered:
        raise ValueError("no points")
    if ordered[0].loss <= target:
        return Reached(ordered[0].work, "at_most" if ordered[0].loss < target else "")
    for before, after in pairwise(ordered):
        if after.loss <= target:
            if not math.isfinite(before.loss):
                return Reached(after.work, "")
            share = (before.loss - target) / (before.loss - after.loss)
            return Reached(before.work * (after.work / before.work) ** share, "")
    return Reached(ordered[-1].work, "at_least")


def loss_at(points: Iterable[Point], work: float) -> float | None:
    """The loss after `work`, interpolated in its logarithm; None outside the budgets that were tried."""
    ordered = sorted(points)
    for point in ordered:
        if math.isclose(point.work, work, rel_tol=1e-9):
            return point.loss
    for before, after in pairwise(ordered):
        if before.work < work < after.work:
            share = math.log(work / before.work) / math.log(after.work / before.work)
            return before.loss + share * (after.loss - before.loss)
    return None


class Speedup(NamedTuple):
    """Over the seeds that both arms have: the geometric mean of the ratios and how many of them are only bounds."""

    interval: Interval
    ratios: list[float]
    n_at_least: int
    n_at_most: int


def speedup(
    plan: BenchPlan, baseline: Sequence[Trial], arm: Sequence[Trial], measure: Measure, seeds: Sequence[int]
) -> Speedup:
    """How much less work `arm` takes to L* than `baseline`; a ratio that is a bound says so by its count."""
    ratios, n_at_least, n_at_most = [], 0, 0
    for seed in seeds:
        base, other = curve(baseline, seed, measure), curve(arm, seed, measure)
        target = reference_loss(plan, baseline, seed)
        here, there = work_to(base, target), work_to(other, target)
        ratios.append(here.work / there.work)
        n_at_least += there.bound == "at_most"
        n_at_most += there.bound == "at_least" or here.bound == "at_most"
    return Speedup(mean_interval([math.log(ratio) for ratio in ratios]).exp(), ratios, n_at_least, n_at_most)


def verdict(found: Speedup) -> str:
    """In words. A benefit needs the whole interval above 1, and L* reached by every seed within its budgets."""
    is_slower = found.interval.high < 1.0
    if not is_slower and (found.n_at_most or found.interval.low <= 1.0):
        return NO_BENEFIT
    few = "" if len(found.ratios) >= MIN_CLAIM_SEEDS else f", on fewer than {MIN_CLAIM_SEEDS} seeds"
    return f"{'slower' if is_slower else 'faster'}{few}"


def curve(trials: Iterable[Trial], seed: int, measure: Measure) -> list[Point]:
    """The budgets of one seed as points."""
    return [Point(measure(trial), _loss(trial)) for trial in trials if trial.seed == seed]


def reference_loss(plan: BenchPlan, baseline: Iterable[Trial], seed: int) -> float:
    """L*: infinite where the baseline diverged."""
    return next(_loss(trial) for trial in baseline if (trial.seed, trial.steps) == (seed, plan.reference))


def complete_seeds(plan: BenchPlan, baseline: Sequence[Trial], arm: Sequence[Trial]) -> list[int]:
    """Seeds of which both arms have every budget, and whose baseline has a loss at the reference."""
    budgets = set(plan.budgets)

    def have(trials: Sequence[Trial], seed: int) -> bool:
        return budgets <= {trial.steps for trial in trials if trial.seed == seed}

    return [
        seed
        for seed in plan.seeds
        if have(baseline, seed) and have(arm, seed) and math.isfinite(reference_loss(plan, baseline, seed))
    ]


def analyse(plan: BenchPlan, trials: Sequence[Trial]) -> dict[str, Any]:
    """Arm -> everything that is said of it. Arms without one complete seed are left out."""
    arms = by_arm(trials)
    baseline = arms.get(BASELINE, [])
    result: dict[str, Any] = {}
    for arm in plan.arms:
        seeds = complete_seeds(plan, baseline, arms.get(arm.name, []))
        if seeds:
            base, own = ([t for t in trials if t.seed in seeds] for trials in (baseline, arms[arm.name]))
            row = {"what": arm.what, "sets": arm.sets, "n_seeds": len(seeds)}
            result[arm.name] = row | _compared(plan, base, own, seeds) | _described(plan, base, own, seeds)
    rows = [row for name, row in result.items() if name != BASELINE]
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value_holm"] = adjusted
    if BASELINE in result:
        result[BASELINE]["verdict"] = "what the others are compared with"
    return result


def _compared(plan: BenchPlan, baseline: Sequence[Trial], own: Sequence[Trial], seeds: Sequence[int]) -> dict[str, Any]:
    """Speed-ups by every measure of work. The claim is that of the cost, which no noise of the machine touches."""
    by_measure = {name: speedup(plan, baseline, own, measure, seeds) for name, measure in MEASURES.items()}
    claimed = by_measure["seconds" if plan.has_clock else "cost"]
    fields: dict[str, Any] = {
        "speedup": claimed.interval.mean,
        "interval": [claimed.interval.low, claimed.interval.high],
        "p_value": claimed.interval.p_value,
        "verdict": verdict(claimed),
        "n_at_least": claimed.n_at_least,
        "n_at_most": claimed.n_at_most,
        "ratios": claimed.ratios,
    }
    for name, found in by_measure.items():
        fields[f"speedup_{name}"] = found.interval.mean
        fields[f"interval_{name}"] = [found.interval.low, found.interval.high]
    return fields


def _described(
    plan: BenchPlan, baseline: Sequence[Trial], own: Sequence[Trial], seeds: Sequence[int]
) -> dict[str, Any]:
    """Losses for equal tokens, cost and time; what the arm's steps cost; what its predictions came to."""
    target = {seed: reference_loss(plan, baseline, seed) for seed in seeds}
    equal_tokens = [(reference_loss(plan, own, seed), target[seed]) for seed in seeds]
    worst = max(
        _loss(trial) / _loss(other) - 1
        for trial in own
        for other in baseline
        if (trial.seed, trial.steps) == (other.seed, other.steps)
    )
    mean_by_budget = [
        fmean(_loss(trial) for trial in own if trial.steps == steps)
        / fmean(_loss(trial) for trial in baseline if trial.steps == steps)
        - 1
        for steps in plan.budgets
    ]
    counts: dict[str, int] = {}
    for trial in own:
        for name, count in trial.counts.items():
            counts[name] = counts.get(name, 0) + count
    return {
        "loss": {str(steps): [_known(own, seed, steps) for seed in seeds] for steps in plan.budgets},
        "equal_tokens": _difference(equal_tokens),
        "equal_cost": _at_equal(plan, baseline, own, target, MEASURES["cost"]),
        "equal_seconds": _at_equal(plan, baseline, own, target, MEASURES["seconds"]),
        "equal_cpu_seconds": _at_equal(plan, baseline, own, target, MEASURES["cpu_seconds"]),
        "worst_at_equal_tokens": worst,
        "worst_mean_at_equal_tokens": max(mean_by_budget),
        "is_never_worse": max(mean_by_budget) <= WORSE_LIMIT,
        "cost_per_step": fmean(trial.cost_steps / trial.steps for trial in own),
        "seconds_per_step": fmean(trial.seconds / trial.steps for trial in own),
        "cpu_seconds_per_step": fmean(trial.cpu_seconds / trial.steps for trial in own),
        "cpu_overhead": _ratio(baseline, own, MEASURES["cpu_seconds"]),
        "counts": counts,
    }


def _at_equal(
    plan: BenchPlan, baseline: Sequence[Trial], own: Sequence[Trial], target: Mapping[int, float], measure: Measure
) -> dict[str, Any] | None:
    """The difference of losses when the arm has done the work of the baseline's reference; None where one has not."""
    pairs = []
    for seed, loss in target.items():
        work = next(measure(trial) for trial in baseline if (trial.seed, trial.steps) == (seed, plan.reference))
        found = loss_at(curve(own, seed, measure), work)
        if found is None:
            return None
        pairs.append((found, loss))
    return _difference(pairs)


def _difference(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """Arm minus baseline in nats, paired; None where an arm diverged."""
    if not all(math.isfinite(own) and math.isfinite(base) for own, base in pairs):
        return None
    found = mean_interval([own - base for own, base in pairs])
    return {
        "difference_nats": found.mean,
        "interval": [found.low, found.high],
        "relative": fmean(own / base - 1 for own, base in pairs),
    }


def _ratio(baseline: Sequence[Trial], own: Sequence[Trial], measure: Measure) -> dict[str, Any]:
    """Work of a step against the baseline's, paired by seed and budget."""
    base = {(trial.seed, trial.steps): measure(trial) for trial in baseline}
    logs = [math.log(measure(trial) / base[trial.seed, trial.steps]) for trial in own]
    found = mean_interval(logs).exp()
    return {"relative": found.mean - 1, "interval": [found.low - 1, found.high - 1]}


def _known(trials: Iterable[Trial], seed: int, steps: int) -> float | None:
    return next(trial.val_loss for trial in trials if (trial.seed, trial.steps) == (seed, steps))


def _loss(trial: Trial) -> float:
    return math.inf if trial.val_loss is None else trial.val_loss
