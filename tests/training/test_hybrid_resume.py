"""A run with predicted progress, killed anywhere and resumed, is the run that was never killed, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from gpuworkbench import registry
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.controls import StopRequested
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, on_reaching

STEPS = 26
SETS: dict[str, Any] = {
    "hybrid.enabled": True,
    "hybrid.warmup_steps": 3,
    "hybrid.full_steps": 5,
    "hybrid.correct_steps": 2,
    "hybrid.exploration": 3,
    "hybrid.confidence_threshold": 0.3,
    "hybrid.probe_sequences": 3,
    "hybrid.moment_damping": 0.9,
    "hybrid.ema_eval_decay": 0.8,
    "train.max_steps": STEPS,
    "checkpoint.interval_steps": 1,
    "eval.interval_steps": 13,
}
TOLD = ("prediction", "correction", "micro_correction", "phase_changed", "step", "eval", "divergence")
ALWAYS_UNDONE = {
    "random",
    "ema_trend",
    "subspace",
    "linear",
    "mlp",
    "learned",
}  # here; what they propose is tested where it must win
CLOCKS = {"seq", "time_unix_s", "mono_s", "attempt", "duration_s", "step_time_s", "tokens_per_s"}


def sets(predictor: str) -> dict[str, Any]:
    return {**SETS, "hybrid.predictor": predictor, "hybrid.dynamics": predictor == "learned"}


def told(local: LocalRuns, paths: RunPaths) -> list[dict[str, Any]]:
    """What the log says of training, each thing once and without clocks; how an attempt began is left out."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for event in local.events(paths, *TOLD):
        if event["type"] == "phase_changed" and event["from_phase"] is None:
            continue
        plain = {key: value for key, value in event.items() if key not in CLOCKS}
        found[event["step"], event["type"], str(plain)] = plain
    return sorted(found.values(), key=lambda event: (event["step"], event["type"], str(event)))


def phases_of_steps(local: LocalRuns, paths: RunPaths) -> set[str]:
    return {event["phase"] for event in local.events(paths, "step")}


@pytest.mark.parametrize("predictor", registry.PREDICTORS)
def test_killed_in_each_phase_and_resumed_it_is_the_same_run(local: LocalRuns, predictor: str) -> None:
    whole = local.trained(f"whole-{predictor.replace('_', '-')}", sets(predictor))
    cut = local.create(f"cut-{predictor.replace('_', '-')}", sets(predictor))
    for step in (2, 9, 10, 15):  # each in another phase, or in the midst of a prediction
        killed(local.open(cut), step)
    assert local.attempt(cut) == 0
    assert final_tensors(cut, STEPS) == final_tensors(whole, STEPS)
    assert told(local, cut) == told(local, whole)
    expected = {"warmup", "full"} if predictor in ALWAYS_UNDONE else {"warmup", "full", "correct"}
    assert expected <= phases_of_steps(local, whole)


def test_it_is_killed_within_a_prediction(local: LocalRuns) -> None:
    """The predictor whose jumps are always tried three in a row: one of the kills above falls between two of them."""
    whole = local.trained("whole", {**sets("line_jump"), "optimizer.lr": 1e-4, "hybrid.max_predict_steps": 5})
    steps = [event["step"] for event in local.events(whole, "step") if event["phase"] == "predict"]
    assert steps, "no true step within a prediction"
    for step in steps[:3]:
        cut = local.create(f"cut-{step}", {**sets("line_jump"), "optimizer.lr": 1e-4, "hybrid.max_predict_steps": 5})
        killed(local.open(cut), step)
        assert local.attempt(cut) == 0
        assert final_tensors(cut, STEPS) == final_tensors(whole, STEPS)
        assert told(local, cut) == told(local, whole)


@pytest.mark.parametrize(
    ("predictor", "lr", "rolls_back"),
    [("line_jump", 1e-4, False), ("outer_nesterov", 1e-5, True)],  # with the second, batches differ by more than steps
)
def test_state_that_leaves_while_it_predicts_changes_nothing(
    local: LocalRuns, predictor: str, lr: float, rolls_back: bool
) -> None:
    """Optimizer state away between true steps, or predictor state on the host: the same run, bit for bit."""
    name = predictor.replace("_", "-")
    common = {**sets(predictor), "optimizer.lr": lr, "hybrid.divergence_threshold": 0.01}
    plain = local.trained(f"here-{name}", common)
    away = local.trained(
        f"away-{name}",
        {**common, "memory.optimizer_offload": "predict_aware", "hybrid.state_device": "host"},
    )
    assert final_tensors(away, STEPS) == final_tensors(plain, STEPS)
    assert local.events(away, "offload")
    assert any(event["accepted"] for event in local.events(plain, "prediction"))
    corrections = [*local.events(plain, "correction"), *local.events(plain, "micro_correction")]
    assert any(event["rolled_back"] for event in corrections) or not rolls_back


def test_a_stop_that_reads_early_leaves_the_advisers_what_they_would_have_known(local: LocalRuns) -> None:
    """As on a card, where losses are read every `steps_between_reads` steps, and by a stop at once."""
    sets = {
        "hybrid.enabled": True,
        "hybrid.warmup_steps": 2,
        "hybrid.full_steps": 30,
        "train.max_steps": 40,
        "train.log_interval_steps": 10,
        "eval.interval_steps": 0,
        "checkpoint.interval_steps": 0,
    }

    def opened(paths: RunPaths) -> TrainingRun:
        run = local.open(paths)
        run.telemetry.interval_steps = run.config.steps_between_reads
        return run

    def stop() -> None:
        raise StopRequested("SIGTERM")

    whole, stopped = local.create("read-whole", sets), local.create("read-stopped", sets)
    for paths in (whole, stopped):
        run = opened(paths)
        run.hybrid.monitor.factor = 0.5  # as after a cut of the learning rate, which it then restores
        if paths is stopped:
            on_reaching(run, 13, stop)
        finish(run)
        run.events.close()
    run = opened(stopped)
    assert run.progress.step == 13
    finish(run)
    run.events.close()
    assert local.losses(stopped) == local.losses(whole)
    assert final_tensors(stopped, 40) == final_tensors(whole, 40)
