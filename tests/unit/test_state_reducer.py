"""What a log says about a run, against hand-made histories whose answers are plain."""

from __future__ import annotations

import math

import msgspec
import pytest

from gpuworkbench.events import schema
from gpuworkbench.events.fold_state import PhaseSpan, Tally
from gpuworkbench.state.reducer import Reducer, smoothed_rates
from gpuworkbench.state.run_state import RunState
from tests.fixtures.event_logs import LogBuilder, random_history


def state_of(log: LogBuilder) -> RunState:
    reducer = Reducer()
    reducer.apply(log.events)
    return reducer.snapshot()


def test_nothing_is_known_of_an_empty_log() -> None:
    state = Reducer().snapshot()
    assert state == RunState(series=state.series)
    assert (state.run_id, state.loss, state.eta_s, state.tokens_per_s, state.last_checkpoint) == (None,) * 5
    assert all(len(points) == 0 for points in state.series.values())


def test_identity_and_outcome() -> None:
    log = LogBuilder().start(card="RTX 5080", simulated_card="RTX 4090", is_cpu_twin=True, n_params=124)
    state = state_of(log)
    assert (state.run_id, state.preset, state.card, state.simulated_card) == (
        "20250101-000000-quick-abcd",
        "quick",
        "RTX 5080",
        "RTX 4090",
    )
    assert state.is_simulated
    assert state.is_started
    assert not state.is_finished
    log.step(1).add(schema.RunFinished, 1, status="stopped", exit_code=75, reason="asked to")
    state = state_of(log)
    assert (state.is_finished, state.finish_status, state.exit_code, state.finish_reason) == (
        True,
        "stopped",
        75,
        "asked to",
    )
    assert state.eta_s is None
    log.resume(1, max_steps=500)
    state = state_of(log)
    assert (state.is_finished, state.attempt, state.from_step, state.max_steps, state.pid) == (False, 2, 1, 500, 2)


def test_measured_and_predicted_losses_are_apart() -> None:
    log = LogBuilder().start().step(1, 5.0).step(2, 4.0)
    fields = {"predictor": "linear", "exploration": False, "horizon_steps": 9, "confidence": 0.5}
    log.add(schema.Prediction, 2, **fields, predicted_loss=1.5, probe_before=4.0, probe_after=3.9, accepted=True)
    log.add(schema.Prediction, 2, **fields, predicted_loss=9.0, probe_before=4.0, probe_after=8.0, accepted=False)
    state = state_of(log)
    assert state.series["loss"].y.tolist() == [5.0, 4.0]
    assert state.series["predicted_loss"].y.tolist() == [1.5, 9.0]
    assert state.loss == 4.0
    assert (state.predictions_accepted, state.predictions_rejected) == (1, 1)


def test_nonfinite_is_unknown_never_zero_and_never_best() -> None:
    log = LogBuilder().start().eval(0, 3.0).step(1, None, grad_norm=None, tokens_per_s=None).eval(1, None)
    state = state_of(log)
    assert state.loss is None
    assert state.nonfinite_losses == 1
    assert len(state.series["loss"]) == 0
    assert state.tokens_per_s is None
    assert state.best_eval is not None
    assert (state.best_eval.step, state.best_eval.loss) == (0, 3.0)
    assert state.last_eval is not None
    assert state.last_eval.loss is None


def test_best_eval_is_the_lowest_and_training_splits_do_not_count() -> None:
    log = LogBuilder().start().eval(10, 4.0).eval(20, 3.0).eval(30, 3.5).eval(40, 1.0, split="train")
    state = state_of(log)
    assert state.best_eval is not None
    assert state.best_eval.step == 20
    assert state.series["val_loss"].x.tolist() == [10, 20, 30]


def test_a_resume_voids_what_earlier_attempts_did_beyond_its_step() -> None:
    log = LogBuilder().start()
    for step in range(1, 31):
        log.step(step, 10.0 - step / 10)
        if step % 10 == 0:
            log.eval(step, 9.0 - step / 10).checkpoint(step).add(schema.Sample, step, prompt="p", text=str(step))
    log.add(schema.Warning, 30, code="c", message="kept")
    log.resume(20)
    state = state_of(log)
    assert state.step == 20
    assert state.series["loss"].x.tolist() == list(range(1, 21))
    assert [event.step for event in state.evals] == [10, 20]
    assert [event.step for event in state.checkpoints] == [10, 20]
    assert [event.text for event in state.samples] == ["10", "20"]
    assert state.best_eval is not None
    assert state.best_eval.step == 20
    assert state.loss == 8.0
    assert state.tokens_seen == 20_000
    assert len(state.warnings) == 1
    assert state.unsaved_since_step is None
    log.step(21, 1.0)
    state = state_of(log)
    assert state.series["loss"].y.tolist()[-2:] == [8.0, 1.0]
    assert state.unsaved_since_step == 20


def test_voided_predictions_and_steps_are_not_counted_twice() -> None:
    log = LogBuilder().start()
    fields = {"predictor": "linear", "exploration": False, "horizon_steps": 9, "confidence": 0.5}
    fields |= {"predicted_loss": 1.0, "probe_before": 1.0, "probe_after": 1.0}
    for attempt in range(2):
        for step in range(11 * attempt, 21):
            log.add(schema.Prediction, step, **fields, accepted=step % 2 == 0)  # after the checkpoint of that step
            log.tick(1.0).step(step + 1, phase="full" if step < 10 else "predict")
        if attempt == 0:
            log.resume(11)
    state = state_of(log)
    assert (state.predictions_accepted, state.predictions_rejected) == (11, 10)
    assert {name: tally.steps for name, tally in state.phase_tallies.items()} == {"full": 10, "predict": 11}


def test_unsaved_since() -> None:
    log = LogBuilder().start()
    assert state_of(log).unsaved_since_step is None
    assert state_of(log.step(1)).unsaved_since_step == 0
    # Written in the background: acknowledged two steps later, but it holds step 1.
    state = state_of(log.step(2).step(3).checkpoint(1, at=3))
    assert state.last_checkpoint_step == 1
    assert state.unsaved_since_step == 1
    assert state_of(log.checkpoint(3)).unsaved_since_step is None


def test_phases_time_and_pauses() -> None:
    log = LogBuilder().start()
    log.tick(1.0).add(schema.PhaseChanged, 0, from_phase=None, to_phase="warmup", reason="start")
    log.tick(2.0).step(1, phase="warmup").tick(2.0).step(2, phase="warmup")
    log.add(schema.Paused, 2).tick(50.0).add(schema.Resumed, 2, paused_s=50.0)
    log.tick(1.0).add(schema.PhaseChanged, 2, from_phase="warmup", to_phase="full", reason="warm")
    log.tick(3.0).step(3).tick(3.0).step(4)
    state = state_of(log)
    assert state.elapsed_s == 12.0
    assert state.phase == "full"
    assert state.spans == (
        PhaseSpan("warmup", 0, 1.0, 2, 6.0, "start"),
        PhaseSpan("full", 2, 6.0, None, None, "warm"),
    )
    assert state.phase_tallies == {"warmup": Tally(5.0, 2), "full": Tally(6.0, 2)}
    # Killed; the machine rebooted (another monotonic clock); resumed from step 3.
    log.mono_s = 5.0
    log.resume(3).tick(4.0).step(4)
    state = state_of(log)
    assert state.elapsed_s == 16.0
    assert state.phase_tallies == {"warmup": Tally(5.0, 2), "full": Tally(10.0, 2)}
    assert state.spans[1:] == (
        PhaseSpan("full", 2, 6.0, 3, 12.0, "warm"),
        PhaseSpan("full", 3, 12.0, None, None, "resumed"),
    )


def test_time_stands_still_in_a_pause() -> None:
    log = LogBuilder().start().tick(3.0).add(schema.Paused, 0).tick(9.0).add(schema.Warning, 0, code="c", message="m")
    state = state_of(log)
    assert state.is_paused
    assert state.elapsed_s == 3.0
    log.add(schema.Resumed, 0).tick(1.0).step(1)
    state = state_of(log)
    assert not state.is_paused
    assert state.elapsed_s == 4.0


def test_a_step_that_names_another_phase_begins_it() -> None:
    state = state_of(LogBuilder().start().step(1, phase="a").tick(2.0).step(2, phase="b").step(3, phase="b"))
    assert [(span.phase, span.start_step, span.end_step) for span in state.spans] == [("a", 0, 1), ("b", 1, None)]
    assert state.phase == "b"


def test_memory_peaks_count_all_attempts_and_unknown_is_none() -> None:
    log = LogBuilder().start().add(schema.Memory, 1, host_rss_bytes=5, host_peak_rss_bytes=9)
    state = state_of(log)
    assert (state.peak_allocated_bytes, state.peak_host_rss_bytes) == (None, 9)
    log.add(schema.Memory, 2, host_rss_bytes=None, allocated_bytes=100, reserved_bytes=150, peak_allocated_bytes=120)
    log.add(schema.Memory, 3, host_rss_bytes=11, allocated_bytes=80, reserved_bytes=140, peak_allocated_bytes=90)
    state = state_of(log.resume(0))
    assert (state.peak_allocated_bytes, state.peak_reserved_bytes, state.peak_host_rss_bytes) == (120, 150, 11)
    assert len(state.series["allocated_bytes"]) == 0
    assert state.last_memory is not None


def test_transfers_are_summed_by_kind_and_phase() -> None:
    log = LogBuilder().start()
    for step in range(1, 101):
        log.add(schema.Offload, step, op="offload" if step % 2 else "restore", target="optimizer", phase="full",
                num_bytes=10, freed_bytes=4, duration_s=0.5, overlapped_s=0.25)  # fmt: skip
    state = state_of(log)
    totals = {total.op: total for total in state.offload_totals}
    assert totals["offload"].count == totals["restore"].count == 50
    assert (totals["offload"].num_bytes, totals["offload"].freed_bytes) == (500, 200)
    assert (totals["offload"].duration_s, totals["offload"].overlapped_s) == (25.0, 12.5)
    assert [event.step for event in state.offloads] == list(range(37, 101))


def test_a_changed_end_counts_and_nonsense_does_not() -> None:
    log = LogBuilder().start(max_steps=10)
    log.add(schema.ConfigChanged, 0, key="train.max_steps", old=10, new=70)
    for nonsense in ("80", None, -3, 10**30, [1]):
        log.add(schema.ConfigChanged, 0, key="train.max_steps", old=70, new=nonsense)
    assert state_of(log).max_steps == 70


def test_smoothed_rates_are_totals_over_totals() -> None:
    log = LogBuilder()
    log.step(1, tokens_per_s=100.0, step_time_s=1.0).step(2, tokens_per_s=20.0, step_time_s=3.0)
    log.step(3, tokens_per_s=None, step_time_s=2.0).step(4, tokens_per_s=5.0, step_time_s=None)
    tokens_per_s, step_time_s = smoothed_rates(log.events)
    assert tokens_per_s == pytest.approx((100.0 * 1 + 20.0 * 3) / 4)
    assert step_time_s == pytest.approx(2.0)


def test_snapshots_are_frozen_and_old_ones_do_not_change() -> None:
    reducer = Reducer()
    log = LogBuilder().start().step(1).checkpoint(1)
    log.add(schema.Offload, 1, op="offload", target="o", phase="p", num_bytes=1, freed_bytes=1, duration_s=1.0,
            overlapped_s=0.0)  # fmt: skip
    reducer.apply(log.events)
    before = reducer.snapshot()
    copy = msgspec.structs.asdict(before)
    reducer.apply(log.events)
    assert msgspec.structs.asdict(before) == copy
    with pytest.raises(AttributeError):
        before.step = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        before.series["loss"] = before.series["lr"]  # type: ignore[index]


def test_notable_events_come_in_the_order_of_the_log() -> None:
    state = state_of(LogBuilder().start().step(1).eval(1, 2.0).checkpoint(1).eval(2, 1.0))
    assert [event.seq for event in state.notable()] == [0, 2, 3, 4]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_events_is_survived(seed: int) -> None:
    """A log is foreign input: shuffled, it makes no sense, but it must not raise or turn into NaN."""
    events = sorted(random_history(seed, 1500), key=lambda event: hash((event.seq * 7919) % 1009))
    reducer = Reducer()
    reducer.apply(events)
    state = reducer.snapshot()
    assert state.n_events == len(events)
    assert math.isfinite(state.elapsed_s)
    assert all(math.isfinite(tally.seconds) and tally.steps >= 0 for tally in state.phase_tallies.values())


def test_a_resume_that_was_refused_changes_neither_step_nor_time() -> None:
    log = LogBuilder().start(max_steps=700)
    for step in range(1, 301):
        log.tick(0.1).step(step)
    before = state_of(log)
    log.attempt = 2
    log.tick(3600).add(schema.Error, 0, kind="io", message="no checkpoint is left")
    log.add(schema.RunFinished, 0, status="failed", exit_code=1, reason="no checkpoint is left")
    state = state_of(log)
    assert (state.step, state.max_steps, state.finish_status) == (300, 700, "failed")
    assert state.elapsed_s == before.elapsed_s == pytest.approx(30)
    log.resume(200, max_steps=700).tick(1).step(201)
    assert state_of(log).step == 201
    assert state_of(log).elapsed_s == pytest.approx(31)
