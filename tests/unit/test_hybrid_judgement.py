"""What judges a jump: the probe's rules, the loss trend, the acceptance rate."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from gpuworkbench.hybrid.acceptance import WINDOW, AcceptanceRate
from gpuworkbench.hybrid.layer_groups import layer_groups
from gpuworkbench.hybrid.loss_trend import DECAY, LossTrend
from gpuworkbench.hybrid.probe import ProbeLoss, is_accepted, paired_standard_error
from gpuworkbench.hybrid.watch import Watch


def probe(*losses: float, counts: tuple[int, ...] | None = None) -> ProbeLoss:
    return ProbeLoss(losses, counts or (16,) * len(losses))


def test_the_standard_error_is_the_textbooks() -> None:
    before, after = probe(3.0, 2.5, 2.0, 3.5), probe(3.1, 2.4, 2.3, 3.6)
    differences = [new - old for old, new in zip(before.losses, after.losses, strict=True)]
    expected = statistics.stdev(differences) / math.sqrt(4)
    assert paired_standard_error(before, after) == pytest.approx(expected, rel=1e-12)


def test_weights_count_and_unscored_sequences_do_not() -> None:
    counts = (10, 30, 0)
    before, after = probe(1.0, 2.0, math.nan, counts=counts), probe(1.4, 2.2, math.nan, counts=counts)
    assert before.mean == pytest.approx(1.75)
    assert after.mean - before.mean == pytest.approx(0.25)
    # The ratio estimator, from its definition: residuals w (d - mean), n / (n - 1), over the total squared.
    residuals = np.array([10 * (0.4 - 0.25), 30 * (0.2 - 0.25)])
    assert paired_standard_error(before, after) == pytest.approx(math.sqrt(2 * (residuals**2).sum()) / 40)


@pytest.mark.parametrize(
    ("rule", "after", "accepted"),
    [
        ("improve", (1.9, 1.9), True),
        ("improve", (2.0, 2.0), False),
        ("improve", (2.0, 2.0001), False),
        ("guard", (1.9, 1.9), True),
        ("guard", (2.0, 2.0), True),
        ("guard", (2.2, 2.0), True),  # mean + 0.1, standard error 0.1
        ("guard", (2.2, 2.21), False),  # mean + 0.205, standard error 0.005
        ("guard", (math.nan, 1.0), False),
        ("improve", (math.inf, 1.0), False),
    ],
)
def test_acceptance_rules(rule: str, after: tuple[float, float], accepted: bool) -> None:
    assert is_accepted(rule, probe(2.0, 2.0), probe(*after)) is accepted  # type: ignore[arg-type]


def test_a_guard_with_one_sequence_allows_no_rise() -> None:
    assert is_accepted("guard", probe(2.0), probe(2.0))
    assert not is_accepted("guard", probe(2.0), probe(2.001))


def test_the_running_mean_and_variance_are_the_weighted_ones() -> None:
    losses = np.random.default_rng(0).normal(3, 0.2, 50)
    trend = LossTrend()
    for loss in losses:
        trend.observe(float(loss))
    weights = np.array([DECAY**49, *((1 - DECAY) * DECAY ** (49 - i) for i in range(1, 50))])
    mean = (weights * losses).sum()
    assert weights.sum() == pytest.approx(1)
    assert trend.mean == pytest.approx(mean, rel=1e-12)
    deviation = math.sqrt((weights * (losses - mean) ** 2).sum())
    assert trend.limit(2.5) == pytest.approx(mean + 2.5 * deviation, rel=1e-9)


def test_numbers_that_are_none_are_left_out() -> None:
    trend = LossTrend()
    assert trend.limit(2.5) == math.inf
    for loss in (2.0, math.nan, 2.0, math.inf, 2.0):
        trend.observe(loss)
    assert trend.limit(2.5) == 2.0
    assert trend.predicted(5) == pytest.approx(2.0, rel=1e-12)


def test_the_forecast_follows_a_curve_and_never_a_line_for_ever() -> None:
    """A loss like 3 + 2 exp(-t / 20): the forecast is between the last loss and the straight line's promise."""
    trend = LossTrend()
    curve = [3 + 2 * math.exp(-t / 20) for t in range(60)]
    for loss in curve:
        trend.observe(loss)
    predicted = trend.predicted(10)
    assert predicted is not None
    truth = 3 + 2 * math.exp(-69 / 20)
    assert abs(predicted - truth) < abs(curve[-1] - truth)
    assert trend.predicted(10**6) == trend.predicted(50)


def test_the_trend_and_the_watch_come_back() -> None:
    trend, copy = LossTrend(), LossTrend()
    for loss in (3.0, 2.9, 2.7, 2.8):
        trend.observe(loss)
    copy.load(trend.values())
    for each in (trend, copy):
        each.observe(2.6)
    assert copy.values() == trend.values()
    watch = Watch(None, 2.5, [2.0, math.nan, 3.0])
    assert watch.mean_loss() == 2.5
    assert Watch.of(watch.values()).values() == watch.values()
    assert math.isnan(Watch(1.0, None).mean_loss())


def test_the_acceptance_rate_is_of_the_last_jumps() -> None:
    acceptance = AcceptanceRate()
    assert acceptance.rate() is None
    acceptance.revoke()
    for accepted in (True, True, False, True):
        acceptance.note(accepted)
    assert acceptance.rate() == 0.75
    acceptance.revoke()
    assert acceptance.rate() == 0.5
    for _ in range(WINDOW):
        acceptance.note(False)
    assert acceptance.rate() == 0.0
    assert len(acceptance.outcomes) == WINDOW


def test_layer_groups() -> None:
    names = ["wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.attn.c.weight", "h.10.ln_1.weight", "ln_f.weight"]
    assert layer_groups(names) == [names[0:1], names[1:2], names[2:4], names[4:5], names[5:6]]
    assert layer_groups(["model.layers.1.a", "model.layers.1.b", "model.norm"]) == [
        ["model.layers.1.a", "model.layers.1.b"],
        ["model.norm"],
    ]
