"""Sums over predictions against the definitions: Brier's score, the bins of a reliability diagram, gain by choice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gpuworkbench.events import schema
from gpuworkbench.events.prediction_tally import MAX_ARMS, N_BINS, PredictionTally
from gpuworkbench.state.reducer import Reducer
from tests.fixtures.event_logs import LogBuilder


def prediction(log: LogBuilder, step: int, **changes: Any) -> None:
    fields = {"predictor": "linear", "exploration": False, "horizon_steps": 5, "confidence": 0.5}
    fields |= {"predicted_loss": 3.0, "probe_before": 3.0, "probe_after": 2.9, "accepted": True}
    log.add(schema.Prediction, step, **(fields | changes))


def tally_of(log: LogBuilder) -> PredictionTally:
    reducer = Reducer()
    reducer.apply(log.events)
    return reducer.snapshot().prediction_tally


def test_the_brier_score_and_the_bins_by_definition() -> None:
    rng = random.Random(3)
    log = LogBuilder().start()
    made = [(rng.random(), rng.random() < 0.6) for _ in range(400)] + [(0.0, False), (1.0, True), (0.2, True)]
    for step, (confidence, accepted) in enumerate(made, start=1):
        prediction(log, step, confidence=confidence, accepted=accepted)
    prediction(log, 999, confidence=None)  # it claims nothing
    tally = tally_of(log)
    assert tally.brier == pytest.approx(sum((p - y) ** 2 for p, y in made) / len(made))
    for index, found in enumerate(tally.bins):
        inside = [(p, y) for p, y in made if min(int(p * N_BINS), N_BINS - 1) == index]
        assert found.count == len(inside)
        assert found.claimed == pytest.approx(sum(p for p, _ in inside) / len(inside))
        assert found.observed == pytest.approx(sum(y for _, y in inside) / len(inside))
    empty = PredictionTally()
    assert (empty.brier, empty.bins[0].claimed, empty.bins[0].observed) == (None, None, None)


def test_a_choice_gains_what_its_accepted_jumps_took_off_per_try() -> None:
    log = LogBuilder().start()
    prediction(log, 1, probe_before=3.0, probe_after=2.5)
    prediction(log, 2, probe_before=3.0, probe_after=4.0, accepted=False)
    prediction(log, 3, probe_before=3.0, probe_after=None)
    prediction(log, 4, horizon_steps=8, probe_before=3.0, probe_after=3.25)
    short, long = tally_of(log).arms
    assert (short.tried, short.accepted, short.mean_gain) == (3, 2, pytest.approx(0.5 / 3))
    assert (long.horizon_steps, long.tried, long.mean_gain) == (8, 1, pytest.approx(-0.25))


def test_a_resume_takes_back_what_came_after_its_step() -> None:
    log = LogBuilder().start()
    prediction(log, 10, confidence=0.9)
    kept = tally_of(log)
    prediction(log, 20, confidence=0.3, accepted=False, horizon_steps=7)
    log.resume(15)
    tally = tally_of(log)
    assert tally.bins == kept.bins
    assert [arm for arm in tally.arms if arm.tried] == kept.arms


def test_names_from_a_foreign_log_take_bounded_room() -> None:
    log = LogBuilder().start()
    for number in range(10 * MAX_ARMS):
        prediction(log, number, predictor=f"p{number}", confidence=2.0)
    tally = tally_of(log)
    assert len(tally.arms) == MAX_ARMS + 1
    assert tally.arms[-1].predictor == "other"
    assert sum(arm.tried for arm in tally.arms) == 10 * MAX_ARMS
    assert tally.brier is None  # a confidence beyond 1 is none


def test_snapshots_do_not_change() -> None:
    reducer = Reducer()
    log = LogBuilder().start()
    prediction(log, 1)
    reducer.apply(log.events)
    before = reducer.snapshot()
    prediction(log, 2)
    reducer.apply(log.events[-1:])
    assert before.prediction_tally.bins[2].count == 1
    assert reducer.snapshot().prediction_tally.bins[2].count == 2


def test_a_phase_knows_what_was_planned_and_transfers_their_bandwidth() -> None:
    log = LogBuilder().start()
    log.add(schema.PhaseChanged, 0, from_phase=None, to_phase="full", reason="start", planned_steps=20)
    log.step(1)
    transfer = {"op": "offload", "target": "m", "phase": "full", "freed_bytes": 0, "overlapped_s": 0.0}
    log.add(schema.Offload, 1, num_bytes=100, duration_s=0.5, **transfer)
    log.add(schema.Offload, 1, num_bytes=100, duration_s=0.0, **transfer)  # no rate can be told
    reducer = Reducer()
    reducer.apply(log.events)
    state = reducer.snapshot()
    assert [span.planned_steps for span in state.spans] == [20]
    assert state.series["offload_bytes_per_s"].y.tolist() == [200.0]
