"""The comparison of the hybrid trainer with plain training, as pure functions: what to train next.

The protocol is that of docs/hybrid-results.md. First the baseline is tuned: for each schedule a search of its rate as
`bench lr` does it, on seeds of their own. Then every arm is trained from every seed at every budget, each time with a
whole schedule in it. The next trials depend on the finished ones only, so a comparison that was killed goes on where
it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from gpuworkbench.plan.lr_search import SearchPlan, geometric_grid
from gpuworkbench.plan.lr_search import Trial as RateTrial
from gpuworkbench.plan.lr_search import best_of as best_rate_of
from gpuworkbench.plan.lr_search import next_trials as next_rate_trials

Value = str | int | float | bool
BASELINE = "baseline"  # tuned, without the hybrid trainer: what every arm is compared with
PRESET = "preset"  # the preset's own rate and schedule, without the hybrid trainer
EMA = "ema_eval"  # the tuned baseline, judged by an average of its weights
CONTROLS = ("null", "random")
EMA_DECAY = 0.98  # about the last 50 steps: short enough for the shortest budgets
MIN_CLAIM_SEEDS = 5
MIN_BUDGETS = 4
GRID_POINTS = 4
GRID_FACTOR = 2.0
TUNED_SCHEDULES = ("linear", "cosine", "warmup_stable_decay")
WARMDOWN_FRACTION = 0.4  # of the budget, where the preset's own schedule has no warm-down


class Arm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way of training. `sets` are keys on top of the tuned (or the preset's own) configuration."""

    name: str
    what: str
    is_tuned: bool = True
    is_hybrid: bool = False
    judged_by_average: bool = False  # the validation loss is that of the averaged weights
    sets: dict[str, Value] = {}


class BenchPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is decided before the first trial. `schedules` empty: the preset is the baseline as it is."""

    preset: str
    label: str
    optimizer: str
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    budgets: tuple[int, ...]  # optimizer steps, rising
    reference: int  # the budget whose baseline loss is L*
    schedules: tuple[str, ...]
    rates: tuple[float, ...]  # the grid to begin with, of each schedule
    rate_factor: float
    adapts: bool  # whether the grid grows and is refined
    arms: tuple[Arm, ...]
    has_clock: bool  # "fast" mode: decisions may read the clock, so costs are measured times


class Trial(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished training of `steps` steps. `cost_steps`: its work in units of one optimizer step of the baseline.

    `val_loss` is None where the training diverged (`diverged` says how). Seconds are of training alone.
    """

    arm: str
    seed: int
    steps: int
    lr: float
    schedule: str
    val_loss: float | None
    diverged: str = ""
    cost_steps: float
    seconds: float
    cpu_seconds: float
    counts: dict[str, int] = {}


class Work(NamedTuple):
    """A trial to do. `arm` is `tuning_name(schedule)` for those that tune the baseline."""

    arm: str
    seed: int
    steps: int
    lr: float
    schedule: str

    @property
    def stem(self) -> str:
        """The name of its file, without the ending: what tells it from every other trial of the plan."""
        return f"{self.arm}-{self.steps}-{self.lr!r}-{self.seed}"


class Tuned(NamedTuple):
    """The best schedule and rate of the tuning, with their mean validation loss (None: nothing was tuned)."""

    schedule: str
    lr: float
    val_loss: float | None


def grid_around(lr: float) -> tuple[float, ...]:
    """Rates from the preset's own upwards: presets are careful, and short trainings take higher rates."""
    return geometric_grid(lr, lr * GRID_FACTOR ** (GRID_POINTS - 1), GRID_POINTS)


def tuning_name(schedule: str) -> str:
    """The arm's name of the trials that tune the baseline under `schedule`."""
    return f"tuning.{schedule}"


def next_trials(plan: BenchPlan, preset: Tuned, trials: Sequence[Trial]) -> list[Work]:
    """What is still to do of the stage that the comparison is in; empty when it is done, or every rate diverged.

    `preset` is the preset's own schedule and rate. Measured trials come seed by seed, so that a comparison that is
    ended early has whole pairs.
    """
    tuning = [work for schedule in plan.schedules for work in _tuning_trials(plan, schedule, trials)]
    if tuning:
        return tuning
    tuned = tuned_of(plan, preset, trials)
    if tuned is None:
        return []
    done = {(trial.arm, trial.seed, trial.steps) for trial in trials}
    return [
        Work(arm.name, seed, steps, *_rate(arm, tuned, preset))
        for seed in plan.seeds
        for steps in plan.budgets
        for arm in plan.arms
        if (arm.name, seed, steps) not in done
    ]


def tuned_of(plan: BenchPlan, preset: Tuned, trials: Sequence[Trial]) -> Tuned | None:
    """The best of the tuning so far; the preset's own where nothing is tuned; None where every rate diverged."""
    if not plan.schedules:
        return preset
    found = []
    for schedule in plan.schedules:
        best = best_rate_of(_rate_trials(schedule, trials))
        if best is not None and best.val_loss is not None:
            found.append(Tuned(schedule, best.lr, best.val_loss))
    return min(found, key=lambda tuned: tuned.val_loss or math.inf, default=None)


def steps_left(plan: BenchPlan, preset: Tuned, trials: Sequence[Trial]) -> int:
    """About how many optimizer steps are still to do, those of stages not begun included."""
    todo = next_trials(plan, preset, trials)
    left = sum(work.steps for work in todo)
    if todo and todo[0].arm.startswith("tuning."):
        left += sum(plan.budgets) * len(plan.seeds) * len(plan.arms)
    return left


def summary_of_tuning(plan: BenchPlan, trials: Sequence[Trial]) -> dict[str, list[dict[str, float | None]]]:
    """Schedule -> every rate that was tried with its mean validation loss, from the lowest."""
    result: dict[str, list[dict[str, float | None]]] = {}
    for schedule in plan.schedules:
        by_lr: dict[float, list[float | None]] = {}
        for trial in trials:
            if trial.arm == tuning_name(schedule):
                by_lr.setdefault(trial.lr, []).append(trial.val_loss)
        result[schedule] = [{"lr": lr, "val_loss": _mean(by_lr[lr])} for lr in sorted(by_lr)]
    return result


def edge_of_grid(tuning: Mapping[str, Sequence[Mapping[str, float | None]]], schedule: str, lr: float) -> str:
    """Where the tuned rate lies among those tried: "lowest", "highest", "only", or "" between two others.

    Between two others a valley was found; at an edge there may be a better rate beyond, and an arm that is faster than
    such a baseline may only be a larger or smaller step in disguise. `tuning` is a `summary_of_tuning`.
    """
    rates = [row["lr"] for row in tuning.get(schedule, ())]
    if not rates:
        return ""
    if len(rates) == 1:
        return "only"
    return "lowest" if lr == rates[0] else "highest" if lr == rates[-1] else ""


def by_arm(trials: Iterable[Trial]) -> Mapping[str, list[Trial]]:
    """The trials of each arm, tuning left out."""
    result: dict[str, list[Trial]] = {}
    for trial in trials:
        if not trial.arm.startswith("tuning."):
            result.setdefault(trial.arm, []).append(trial)
    return result


def _tuning_trials(plan: BenchPlan, schedule: str, trials: Sequence[Trial]) -> list[Work]:
    search = SearchPlan(
        preset=plan.preset,
        label=schedule,
        steps=plan.reference,
        full_steps=plan.reference,
        seeds=plan.tuning_seeds,
        lr_range=(plan.rates[0], plan.rates[-1]),
        range_steps=0,
        grid=plan.rates,
        factor=plan.rate_factor,
        adapts=plan.adapts,
    )
    todo = next_rate_trials(search, None, _rate_trials(schedule, trials))
    return [Work(tuning_name(schedule), work.seed, plan.reference, work.lr, schedule) for work in todo]


def _rate_trials(schedule: str, trials: Iterable[Trial]) -> list[RateTrial]:
    return [
        RateTrial(
            lr=trial.lr,
            seed=trial.seed,
            losses=(),
            val_loss=trial.val_loss,
            diverged=trial.diverged,
            seconds=trial.seconds,
        )
        for trial in trials
        if trial.arm == tuning_name(schedule)
    ]


def _rate(arm: Arm, tuned: Tuned, preset: Tuned) -> tuple[float, str]:
    """Rate and schedule of an arm: keys of its own come first."""
    base = tuned if arm.is_tuned else preset
    lr, schedule = arm.sets.get("optimizer.lr", base.lr), arm.sets.get("schedule.name", base.schedule)
    return float(lr), str(schedule)


def _mean(losses: Sequence[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if len(known) == len(losses) and known else None
