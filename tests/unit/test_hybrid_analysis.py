"""What is said of an arm: a curve of known shift has that speed-up; bounds, ties and gaps are told as such."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.plan.hybrid_analysis import (
    MEASURES,
    NO_BENEFIT,
    Point,
    Reached,
    analyse,
    loss_at,
    speedup,
    verdict,
    work_to,
)
from gpuworkbench.plan.hybrid_bench import Arm, BenchPlan, Trial
from gpuworkbench.plan.paired_statistics import t_quantile

BUDGETS = (100, 200, 400, 800)
SEEDS = (1, 2, 3, 4, 5)


def plan_of(*names: str, seeds: tuple[int, ...] = SEEDS, has_clock: bool = False) -> BenchPlan:
    return BenchPlan(
        preset="p",
        label="p",
        optimizer="adamw",
        seeds=seeds,
        tuning_seeds=(100,),
        budgets=BUDGETS,
        reference=400,
        schedules=(),
        rates=(1e-3,),
        rate_factor=2.0,
        adapts=False,
        arms=tuple(Arm(name=name, what=name) for name in ("baseline", *names)),
        has_clock=has_clock,
    )


def trial(
    arm: str, seed: int, steps: int, loss: float | None, *, cost: float | None = None, time: float = 1.0
) -> Trial:
    return Trial(
        arm=arm,
        seed=seed,
        steps=steps,
        lr=1e-3,
        schedule="linear",
        val_loss=loss,
        cost_steps=steps if cost is None else cost,
        seconds=steps * time,
        cpu_seconds=steps * time,
        counts={"accepted": 2},
    )


def trials_of(arm: str, loss: Callable[[int, int], float | None], cost: float = 1.0, time: float = 1.0) -> list[Trial]:
    """`loss(seed, steps)` at every budget; each step costs `cost` steps and takes `time` seconds."""
    return [
        trial(arm, seed, steps, loss(seed, steps), cost=steps * cost, time=time) for seed in SEEDS for steps in BUDGETS
    ]


def logarithmic(seed: int, steps: float) -> float:
    """Straight in log(steps), where the interpolation is exact."""
    return 4.0 + 0.1 * seed - 0.3 * math.log(steps)


def test_the_first_crossing_is_interpolated_in_the_logarithm() -> None:
    points = [Point(100, 3.0), Point(400, 2.0), Point(800, 1.5)]
    assert work_to(points, 2.5) == Reached(pytest.approx(200), "")  # halfway in loss: sqrt(100 * 400)
    assert work_to(points, 2.0) == Reached(400, "")
    assert work_to(reversed(points), 1.75) == Reached(pytest.approx(math.sqrt(400 * 800)), "")


def test_outside_the_budgets_the_work_is_a_bound() -> None:
    points = [Point(100, 3.0), Point(400, 2.0)]
    assert work_to(points, 1.9) == Reached(400, "at_least")
    assert work_to(points, 3.1) == Reached(100, "at_most")
    assert work_to(points, 3.0) == Reached(100, "")
    assert work_to([Point(50, 2.0)], 2.0) == Reached(50, "")
    with pytest.raises(ValueError):
        work_to([], 1.0)


def test_a_curve_that_rises_again_counts_by_its_first_crossing() -> None:
    points = [Point(100, 3.0), Point(200, 2.0), Point(400, 2.6), Point(800, 1.0)]
    assert work_to(points, 2.5).work == pytest.approx(100 * math.sqrt(2))


def test_after_a_divergence_nothing_is_interpolated() -> None:
    points = [Point(100, math.inf), Point(200, 2.0)]
    assert work_to(points, 2.5) == Reached(200, "")
    assert work_to([Point(100, math.inf), Point(200, math.inf)], 2.5) == Reached(200, "at_least")


@given(st.floats(-0.5, 0.5), st.floats(0.05, 3.0))
def test_on_a_straight_curve_the_target_is_found_exactly(offset: float, slope: float) -> None:
    points = [Point(b, 5 - slope * math.log(b)) for b in BUDGETS]
    at = 250 * math.exp(offset)
    found = work_to(points, 5 - slope * math.log(at))
    assert found.work == pytest.approx(at)
    assert found.bound == ""


def test_losses_between_budgets_and_none_beyond() -> None:
    points = [Point(100, 3.0), Point(400, 2.0)]
    assert loss_at(points, 200) == pytest.approx(2.5)
    assert loss_at(points, 400) == 2.0
    assert loss_at(points, 99) is None
    assert loss_at(points, 401) is None


def test_a_curve_shifted_by_a_fifth_is_a_speedup_of_a_fifth() -> None:
    """The arm reaches in B steps what the baseline reaches in 1.2 B."""
    base = trials_of("baseline", logarithmic)
    arm = trials_of("fast", lambda seed, steps: logarithmic(seed, 1.2 * steps))
    row = analyse(plan_of("fast"), [*base, *arm])["fast"]
    assert row["speedup"] == pytest.approx(1.2)
    assert row["interval"] == [pytest.approx(1.2), pytest.approx(1.2)]
    assert row["verdict"] == "faster"
    assert row["equal_tokens"]["difference_nats"] == pytest.approx(-0.3 * math.log(1.2))
    assert (row["n_at_least"], row["n_at_most"]) == (0, 0)


def test_what_predictions_cost_is_part_of_the_work() -> None:
    """20 % fewer steps, each 20 % dearer: nothing gained. In steps it looks faster, and is reported as such beside."""
    base = trials_of("baseline", logarithmic)
    arm = trials_of("dear", lambda seed, steps: logarithmic(seed, 1.2 * steps), cost=1.2, time=1.5)
    row = analyse(plan_of("dear"), [*base, *arm])["dear"]
    assert row["speedup"] == pytest.approx(1.0)
    assert row["speedup_steps"] == pytest.approx(1.2)
    assert row["speedup_seconds"] == pytest.approx(1.2 / 1.5)
    assert row["cpu_overhead"]["relative"] == pytest.approx(0.5)
    assert row["cost_per_step"] == pytest.approx(1.2)
    assert row["equal_cost"]["difference_nats"] == pytest.approx(0, abs=1e-12)
    # where decisions may read a clock, the claim is in seconds
    timed = analyse(plan_of("dear", has_clock=True), [*base, *arm])["dear"]
    assert timed["speedup"] == timed["speedup_seconds"]
    assert timed["verdict"] == "slower"


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    """Seeds lie 0.1 apart, the gain is 0.01: unpaired it would drown."""
    noise = dict(zip(SEEDS, (-0.002, 0.001, 0.0, 0.002, -0.001), strict=True))
    base = trials_of("baseline", logarithmic)
    arm = trials_of("slight", lambda seed, steps: logarithmic(seed, steps) - 0.01 + noise[seed])
    row = analyse(plan_of("slight"), [*base, *arm])["slight"]
    logs = [(0.01 - noise[seed]) / 0.3 for seed in SEEDS]
    mean = sum(logs) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs) / 4)
    reach = t_quantile(0.975, 4) * deviation / math.sqrt(5)
    assert row["speedup"] == pytest.approx(math.exp(mean))
    assert row["interval"] == [pytest.approx(math.exp(mean - reach)), pytest.approx(math.exp(mean + reach))]
    assert row["verdict"] == "faster"


def test_an_interval_around_one_is_said_in_these_words() -> None:
    noise = dict(zip(SEEDS, (-0.02, 0.03, 0.01, -0.03, 0.01), strict=True))
    base = trials_of("baseline", logarithmic)
    arm = trials_of("same", lambda seed, steps: logarithmic(seed, steps) + noise[seed])
    rows = analyse(plan_of("same", "null"), [*base, *arm, *trials_of("null", logarithmic)])
    assert rows["same"]["verdict"] == "no measurable benefit" == NO_BENEFIT
    assert rows["null"]["verdict"] == "no measurable benefit"
    assert rows["null"]["interval"] == [1.0, 1.0]
    assert rows["null"]["p_value"] == 1.0


def test_a_seed_that_never_reaches_the_target_forbids_the_claim() -> None:
    base = trials_of("baseline", logarithmic)

    def loss(seed: int, steps: int) -> float:
        return 9.0 if seed == 3 else logarithmic(seed, 1.9 * steps)

    plan = plan_of("often")
    row = analyse(plan, [*base, *trials_of("often", loss)])["often"]
    assert row["n_at_most"] == 1
    assert min(row["ratios"]) == 0.5  # the largest budget stands for the time it never took
    assert row["verdict"] == NO_BENEFIT
    # even where the bound itself would pass
    found = speedup(plan, base, trials_of("often", loss), MEASURES["cost"], (1, 2, 4))
    assert verdict(found._replace(n_at_most=1)) == NO_BENEFIT
    assert verdict(found) == "faster, on fewer than 5 seeds"
    never = analyse(plan, [*base, *trials_of("often", lambda *_: 9.0)])["often"]
    assert (never["verdict"], never["n_at_most"], never["speedup"]) == ("slower", 5, 0.5)


def test_reached_below_the_smallest_budget_is_at_least_that() -> None:
    base = trials_of("baseline", logarithmic)
    row = analyse(plan_of("great"), [*base, *trials_of("great", lambda *_: 0.1)])["great"]
    assert (row["speedup"], row["n_at_least"], row["verdict"]) == (pytest.approx(4.0), 5, "faster")


def test_a_baseline_that_is_below_the_target_from_the_start_gives_a_bound() -> None:
    """Not sensible, but possible by noise: its shortest run already ends below its reference."""
    base = trials_of("baseline", lambda _, steps: 2.0 if steps == 400 else 1.5)
    row = analyse(plan_of("arm"), [*base, *trials_of("arm", lambda *_: 1.0)])["arm"]
    assert row["n_at_most"] == 5
    assert row["verdict"] == NO_BENEFIT


def test_only_whole_pairs_are_compared() -> None:
    base = trials_of("baseline", logarithmic)
    arm = [one for one in trials_of("arm", logarithmic) if (one.seed, one.steps) != (2, 800)]
    rows = analyse(plan_of("arm", "later"), [*base, *arm, trial("later", 1, 100, 1.0)])
    assert rows["arm"]["n_seeds"] == 4
    assert "later" not in rows
    assert rows["baseline"]["n_seeds"] == 5


def test_where_the_baseline_diverged_there_is_no_pair() -> None:
    base = trials_of("baseline", lambda seed, steps: None if (seed, steps) == (1, 400) else logarithmic(seed, steps))
    row = analyse(plan_of("arm"), [*base, *trials_of("arm", logarithmic)])["arm"]
    assert row["n_seeds"] == 4


def test_an_arm_that_diverged_has_no_difference_and_no_benefit() -> None:
    base = trials_of("baseline", logarithmic)
    row = analyse(plan_of("arm"), [*base, *trials_of("arm", lambda *_: None)])["arm"]
    assert row["equal_tokens"] is None
    assert row["verdict"] == "slower"
    assert not row["is_never_worse"]


def test_more_than_a_percent_worse_at_equal_tokens_is_told() -> None:
    base = trials_of("baseline", lambda *_: 2.0)
    little = trials_of("little", lambda seed, _: 2.015 if seed != 1 else 2.03)
    much = trials_of("much", lambda _, steps: 2.03 if steps == 200 else 1.9)
    rows = analyse(plan_of("little", "much"), [*base, *little, *much])
    assert rows["little"]["worst_at_equal_tokens"] == pytest.approx(0.015)
    assert rows["little"]["is_never_worse"]
    assert rows["much"]["worst_mean_at_equal_tokens"] == pytest.approx(0.015)
    assert not rows["much"]["is_never_worse"]


def test_p_values_are_adjusted_for_the_number_of_arms() -> None:
    noise = dict(zip(SEEDS, (-0.004, 0.003, 0.001, -0.003, 0.002), strict=True))
    base = trials_of("baseline", logarithmic)
    names = ("a", "b", "c")
    arms = [t for n in names for t in trials_of(n, lambda seed, steps: logarithmic(seed, steps) - 0.005 + noise[seed])]
    rows = analyse(plan_of(*names), [*base, *arms])
    for name in names:
        assert rows[name]["p_value_holm"] == pytest.approx(3 * rows[name]["p_value"])
    assert "p_value_holm" not in rows["baseline"]
    assert rows["a"]["counts"] == {"accepted": 2 * len(SEEDS) * len(BUDGETS)}
