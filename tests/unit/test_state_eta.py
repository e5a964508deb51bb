"""Time left, against sums done by hand."""

from __future__ import annotations

import pytest

from gpuworkbench.state.eta import remaining_s
from gpuworkbench.state.reducer import Reducer
from tests.fixtures.event_logs import LogBuilder


def test_unknown_without_an_end_or_a_step_time() -> None:
    assert remaining_s(5, None, 1.0, [], []) is None
    assert remaining_s(5, 10, None, [], []) is None


def test_steps_alone() -> None:
    assert remaining_s(40, 100, 0.5, [], []) == pytest.approx(30.0)
    assert remaining_s(100, 100, 0.5, [], []) == 0.0
    assert remaining_s(120, 100, 0.5, [], []) == 0.0


def test_evals_and_checkpoints_at_their_intervals() -> None:
    # Evals every 10 steps of 2 s and 4 s: at 30..100, that is 8 more of 3 s. Checkpoints every 25: 25..100, 4 of 1 s.
    assert remaining_s(20, 100, 0.5, [(10, 2.0), (20, 4.0)], []) == pytest.approx(80 * 0.5 + 8 * 3.0)
    assert remaining_s(25, 100, 0.5, [], [(25, 1.0)]) == pytest.approx(75 * 0.5 + 3 * 1.0)
    # 110 is no multiple of 25: 50, 75, 100 and the one at the last step.
    assert remaining_s(25, 110, 0.5, [], [(25, 1.0)]) == pytest.approx(85 * 0.5 + 4 * 1.0)


def test_an_eval_before_the_first_step_says_nothing_about_the_interval() -> None:
    assert remaining_s(5, 100, 1.0, [(0, 7.0)], []) == pytest.approx(95.0)
    assert remaining_s(50, 100, 1.0, [(0, 7.0), (50, 7.0)], []) == pytest.approx(50.0 + 7.0)


def test_a_checkpoint_by_hand_does_not_shift_the_interval() -> None:
    saved = [(100, 1.0), (200, 1.0), (207, 1.0), (300, 1.0), (400, 1.0)]
    assert remaining_s(400, 1000, 1.0, [], saved) == pytest.approx(600 + 6 * 1.0)


def test_only_recent_durations_count() -> None:
    evals = [(10 * i, 100.0 if i < 5 else 1.0) for i in range(1, 10)]
    assert remaining_s(90, 100, 1.0, evals, []) == pytest.approx(10.0 + 1.0)


def test_where_steps_grow_tokens_tell_the_time_left() -> None:
    """60 steps of 0.1 s lie behind, at 10,000 tokens a second; 400,000 tokens are to come."""
    log = LogBuilder().start(max_steps=100, max_tokens=460_000)
    for step in range(1, 61):
        log.step(step)
    reducer = Reducer()
    reducer.apply(log.events)
    assert reducer.snapshot().eta_s == pytest.approx(40.0)
    log.resume(60, max_steps=200, max_tokens=1_060_000).step(61)
    reducer.apply(log.events[-2:])
    assert reducer.snapshot().eta_s == pytest.approx(99.9)
