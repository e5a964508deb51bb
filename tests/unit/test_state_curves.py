"""Curves over steps, tokens and time, against hand-made histories and the formula of the average."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.events import schema
from gpuworkbench.events.series import Points
from gpuworkbench.state.curves import curve, ema, first_at_or_below, on_axis, step_at, value_at
from gpuworkbench.state.reducer import Reducer
from gpuworkbench.state.run_state import RunState
from gpuworkbench.state.ticks import axis_unit, log_ticks
from tests.fixtures.event_logs import LogBuilder, random_history


def state_of(log: LogBuilder) -> RunState:
    reducer = Reducer()
    reducer.apply(log.events)
    return reducer.snapshot()


def points(x: list[float], y: list[float]) -> Points:
    return Points(np.array(x, dtype=float), np.array(y, dtype=float))


def test_time_leaves_out_pauses_and_the_time_between_attempts_and_keeps_redone_work() -> None:
    log = LogBuilder().start()
    for step in range(1, 5):
        log.tick(1.0).step(step, 9.0 - step)
    log.add(schema.Paused, 4).tick(50).add(schema.Resumed, 4)
    log.tick(1.0).step(5, 4.0)
    log.mono_s = 7.0  # another process, with a clock of its own
    log.resume(2)
    for step in range(3, 6):
        log.tick(2.0).step(step, 8.0 - step)
    series = state_of(log).series
    # 5 s of the first attempt, of which steps 3 to 5 are void but their time is spent; then 2 s a step.
    assert on_axis(series, np.array([1.0, 2, 3, 4, 5]), "time").tolist() == [1, 2, 7, 9, 11]
    assert on_axis(series, np.array([2.5]), "tokens").tolist() == [2500]
    assert curve(series, "loss", "time").x.tolist() == [1, 2, 7, 9, 11]
    assert curve(series, "loss").y.tolist() == [8, 7, 5, 4, 3]


def test_before_the_first_step_nothing_is_trained_and_no_time_has_passed() -> None:
    log = LogBuilder().start().eval(0, 9.0)
    log.tick(3).step(1, 8.0).tick(3).step(2, 7.0)
    series = state_of(log).series
    assert curve(series, "val_loss", "time").x.tolist() == [0]
    assert curve(series, "val_loss", "tokens").x.tolist() == [0]


def test_a_run_that_told_no_step_has_no_place_on_other_axes() -> None:
    series = state_of(LogBuilder().start().eval(0, 9.0)).series
    assert len(curve(series, "val_loss", "step")) == 1
    assert len(curve(series, "val_loss", "time")) == len(curve(series, "val_loss", "tokens")) == 0
    assert math.isnan(step_at(series, 3.0, "tokens"))


@pytest.mark.parametrize("by", ["step", "tokens", "time"])
def test_a_place_on_an_axis_and_its_step_belong_together(by: str) -> None:
    log = LogBuilder().start()
    for step in range(1, 40):
        log.tick(0.5 + step % 3).step(step, 1.0, tokens_seen=step * 100 + (step > 20) * 5000)
    series = state_of(log).series
    steps = np.linspace(1, 39, 77)
    back = [step_at(series, x, by) for x in on_axis(series, steps, by).tolist()]  # type: ignore[arg-type]
    assert back == pytest.approx(steps.tolist())


def test_the_series_of_time_does_not_depend_on_the_portions_of_the_log() -> None:
    events = random_history(3, 600)
    whole, single = Reducer(), Reducer()
    whole.apply(events)
    for event in events:
        single.apply([event])
        single.snapshot()
    assert whole.snapshot().series["elapsed_s"] == single.snapshot().series["elapsed_s"]
    assert (np.diff(whole.snapshot().series["elapsed_s"].y) >= 0).all()


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-100, 100)), min_size=1, max_size=30), st.floats(0.0, 0.999))
def test_the_average_is_the_weighted_mean_with_weights_by_distance(gaps: list[tuple[int, float]], a: float) -> None:
    x = np.cumsum([gap for gap, _ in gaps]).astype(float)
    y = np.array([value for _, value in gaps])
    expected = [float(np.average(y[: n + 1], weights=a ** (x[n] - x[: n + 1]))) for n in range(len(x))]
    assert ema(Points(x, y), a).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_for_neighbouring_steps_the_average_is_that_of_adam() -> None:
    y, beta, m = np.random.default_rng(0).normal(size=50), 0.9, 0.0
    expected = []
    for t, value in enumerate(y, start=1):
        m = beta * m + (1 - beta) * value
        expected.append(m / (1 - beta**t))
    assert ema(Points(np.arange(50.0), y), beta).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("factor", [-0.1, 1.0, float("nan")])
def test_an_impossible_factor_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="smoothing"):
        ema(points([1, 2], [1, 2]), factor)


def test_values_at_and_crossings() -> None:
    series = points([1, 5, 9], [3.0, 2.0, 2.5])
    assert [value_at(series, step) for step in (0, 1, 4.9, 5, 99)] == [None, 3.0, 3.0, 2.0, 2.5]
    assert [first_at_or_below(series, loss) for loss in (9, 2.4, 2.0, 1.0)] == [1, 5, 5, None]
    assert value_at(points([], []), 1) is first_at_or_below(points([], []), 1) is None


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.9, 110, [1, 2, 5, 10, 20, 50, 100]), (2.2, 8.4, [4, 6, 8]), (0.001, 1e6, [10.0**n for n in range(-3, 7)])],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high, 4) == pytest.approx(ticks)


def test_a_logarithmic_axis_needs_positive_numbers() -> None:
    assert log_ticks(0, 1, 4) == log_ticks(-1, 1, 4) == log_ticks(1, 1, 4) == log_ticks(1, math.inf, 4) == []


@pytest.mark.parametrize(("longest", "name"), [(90, " s"), (600, " min"), (20_000, " h"), (4e5, " d")])
def test_the_unit_of_a_time_axis(longest: float, name: str) -> None:
    assert axis_unit("time", longest)[1] == name
    assert axis_unit("step", longest) == (1.0, "")
