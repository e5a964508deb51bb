"""Commands to a living trainer: what they do at the loop's safe point, and what a resume keeps of them."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from gpuworkbench.errors import ConfigError
from gpuworkbench.runs.control import send_command
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, on_reaching
from tests.fixtures.tiny_run import wait_until

LR_SCALE = "optimizer.lr_scale"


def set_at(run: TrainingRun, step: int, key: str, value: object) -> None:
    """A `set` command that arrives while `step` steps are done."""
    on_reaching(run, step, lambda: send_command(run.paths, "set", {"key": key, "value": value}))


def finished(run: TrainingRun) -> None:
    outcome = finish(run)
    assert outcome.status == "completed", outcome
    run.events.close()


def rates(local: LocalRuns, paths: RunPaths) -> dict[int, float]:
    return {event["step"]: event["lr"] for event in local.events(paths, "step")}


@pytest.fixture(scope="module")
def whole(local: LocalRuns) -> RunPaths:
    return local.trained("whole")


@pytest.fixture(scope="module")
def halved_at_17(local: LocalRuns) -> RunPaths:
    """A run whose learning rate was halved with 17 steps done, and that nobody disturbed otherwise."""
    run = local.open(local.create("halved"))
    set_at(run, 17, LR_SCALE, 0.5)
    finished(run)
    return run.paths


def test_a_changed_rate_holds_from_the_next_step_on(local: LocalRuns, whole: RunPaths, halved_at_17: RunPaths) -> None:
    before, after = rates(local, whole), rates(local, halved_at_17)
    for step, rate in before.items():
        assert after[step] == pytest.approx(rate * (0.5 if step > 17 else 1.0), rel=1e-12)
    (change,) = local.events(halved_at_17, "config_changed")
    assert (change["key"], change["old"], change["new"], change["step"]) == (LR_SCALE, 1.0, 0.5, 17)
    (answer,) = local.events(halved_at_17, "control_ack")
    assert (answer["ok"], answer["message"]) == (True, "optimizer.lr_scale: 1 -> 0.5")
    assert not any(halved_at_17.control.iterdir())
    assert 17 in [event["step"] for event in local.events(halved_at_17, "checkpoint_saved")]


@pytest.mark.parametrize("step", [18, 20, 25])
def test_a_resume_keeps_the_change(local: LocalRuns, halved_at_17: RunPaths, step: int) -> None:
    run = local.open(local.create(f"halved-killed-{step}"))
    set_at(run, 17, LR_SCALE, 0.5)
    killed(run, step)
    assert local.attempt(run.paths) == 0
    assert local.losses(run.paths) == local.losses(halved_at_17)
    assert final_tensors(run.paths, 40) == final_tensors(halved_at_17, 40)


def test_a_change_at_a_step_that_is_saved_already_is_kept_too(local: LocalRuns) -> None:
    """A checkpoint is never written twice; what came after it is found in the log, even after two deaths."""
    undisturbed = local.open(local.create("saved-already"))
    set_at(undisturbed, 14, LR_SCALE, 0.25)
    finished(undisturbed)

    run = local.open(local.create("saved-already-killed"))
    set_at(run, 14, LR_SCALE, 0.25)
    killed(run, 16)
    again = local.open(run.paths)
    assert again.progress.step == 14
    killed(again, 15)
    assert local.attempt(run.paths) == 0
    assert local.losses(run.paths) == local.losses(undisturbed.paths)
    assert rates(local, run.paths) == rates(local, undisturbed.paths)


def test_intervals_change_while_the_run_goes_on(local: LocalRuns) -> None:
    run = local.open(local.create("intervals"))
    set_at(run, 21, "eval.interval_steps", 3)
    set_at(run, 30, "checkpoint.interval_steps", 0)
    finished(run)
    assert [event["step"] for event in local.events(run.paths, "eval")] == [10, 20, 24, 27, 30, 33, 36, 39, 40]
    after_30 = [event["step"] for event in local.events(run.paths, "checkpoint_saved") if event["step"] > 30]
    best = [event["step"] for event in local.events(run.paths, "eval") if event["is_best"] and event["step"] > 30]
    assert after_30 == sorted({*best, 40})


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("optimizer.lr", 0.1, "cannot change while a run is going"),
        ("model.n_layer", 3, "cannot change while a run is going"),
        (LR_SCALE, 0, "is not a factor"),
        (LR_SCALE, -1.0, "is not a factor"),
        (LR_SCALE, 101, "is not a factor"),
        (LR_SCALE, True, "is not a factor"),
        (LR_SCALE, "0.5", "is not a factor"),
        (LR_SCALE, None, "is not a factor"),
        (LR_SCALE, [0.5], "is not a factor"),
        ("eval.interval_steps", 1.5, "is not a number of steps"),
        ("eval.interval_steps", -1, "is not a number of steps"),
        ("eval.interval_steps", "10", "is not a number of steps"),
        ("eval.interval_steps", {"a": 1}, "is not a number of steps"),
    ],
)
def test_other_changes_are_refused(local: LocalRuns, key: str, value: object, problem: str) -> None:
    name = "refused-" + "".join(char if char.isalnum() else "-" for char in f"{key}-{value}")
    run = local.open(local.create(name))
    assert run.controls is not None
    send_command(run.paths, "set", {"key": key, "value": value})
    run.controls.obey()
    run.events.close()
    (answer,) = local.events(run.paths, "control_ack")
    assert answer["ok"] is False
    assert problem in answer["message"]
    assert run.settings.overridden == {}
    assert local.events(run.paths, "config_changed") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(local: LocalRuns, value: float) -> None:
    run = local.open(local.create(f"not-a-number-{value}"))
    with pytest.raises(ConfigError, match="is not a factor"):
        run.settings.change(LR_SCALE, value)
    run.events.close()


def test_what_is_configured_at_a_resume_counts_more_than_a_change_in_passing(local: LocalRuns) -> None:
    run = local.open(local.create("configured-anew"))
    set_at(run, 12, "eval.interval_steps", 3)
    set_at(run, 12, LR_SCALE, 0.5)
    killed(run, 16)
    local.change(run.paths, {"eval.interval_steps": 20})
    again = local.open(run.paths)
    assert again.settings["eval.interval_steps"] == 20
    assert again.settings[LR_SCALE] == 0.5, "what was not configured anew stays as it was changed"
    again.events.close()


# Pausing


def in_the_background(run: TrainingRun) -> threading.Thread:
    thread = threading.Thread(target=finished, args=(run,))
    thread.start()
    return thread


def test_pause_waits_and_continue_goes_on(local: LocalRuns, whole: RunPaths) -> None:
    run = local.open(local.create("paused"))
    on_reaching(run, 9, lambda: send_command(run.paths, "pause"))
    thread = in_the_background(run)
    wait_until(lambda: local.events(run.paths, "paused"), what="pause")
    time.sleep(0.3)
    assert max(local.losses(run.paths)) == 9
    assert derive_status(run.paths).status is not RunStatus.COMPLETED
    send_command(run.paths, "pause")
    send_command(run.paths, "checkpoint")
    wait_until(lambda: 9 in [e["step"] for e in local.events(run.paths, "checkpoint_saved")], what="checkpoint")
    assert max(local.losses(run.paths)) == 9, "a checkpoint is taken while the run is paused"
    send_command(run.paths, "continue")
    thread.join(60)
    assert local.losses(run.paths) == local.losses(whole)
    answers = [(event["command"], event["message"]) for event in local.events(run.paths, "control_ack")]
    assert answers == [
        ("pause", "paused at step 9"),
        ("pause", "was paused already"),
        ("checkpoint", "checkpoint of step 9"),
        ("continue", "goes on from step 9"),
    ]
    (resumed,) = local.events(run.paths, "resumed")
    assert resumed["paused_s"] > 0.3


@pytest.mark.parametrize("way", ["command", "signal"])
def test_a_paused_run_can_be_stopped(local: LocalRuns, whole: RunPaths, way: str) -> None:
    run = local.open(local.create(f"paused-stopped-{way}"))
    controls = run.controls
    assert controls is not None
    on_reaching(run, 9, lambda: send_command(run.paths, "pause"))

    def stop() -> None:
        wait_until(lambda: local.events(run.paths, "paused"), what="pause")
        if way == "command":
            send_command(run.paths, "stop")
        else:
            controls.signals.received = signal.SIGTERM

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = finish(run)
    thread.join()
    run.events.close()
    assert (outcome.step, outcome.status, outcome.exit_code) == (9, "stopped", 75)
    assert outcome.reason == ("stop command" if way == "command" else "SIGTERM")
    assert local.attempt(run.paths) == 0
    assert local.losses(run.paths) == local.losses(whole)
    assert final_tensors(run.paths, 40) == final_tensors(whole, 40)


def test_what_is_no_command_is_answered_and_forgotten(local: LocalRuns, whole: RunPaths) -> None:
    """Anybody who can write the directory can put anything there."""
    run = local.open(local.create("hostile-control"))
    outside = local.workspace.root / "outside.json"
    outside.write_text('{"command": "stop"}')

    def plant() -> None:
        plant_all(run.paths.control, outside)

    on_reaching(run, 5, plant)
    finished(run)
    answers = local.events(run.paths, "control_ack")
    assert len(answers) == 5
    assert not any(event["ok"] for event in answers)
    assert local.losses(run.paths) == local.losses(whole)
    assert outside.exists()


def plant_all(control: Path, outside: Path) -> None:
    stamp = f"{time.time_ns():020d}"
    (control / f"{stamp}-0000000a.json").write_text("{")
    (control / f"{stamp}-0000000b.json").write_text('{"command": "launch"}')
    (control / f"{stamp}-0000000c.json").symlink_to(outside)
    (control / "stop.json").write_text('{"command": "stop"}')
    (control / f"{stamp}-0000000d.json").write_bytes(b'{"command": "pause", "args": {"' + b"x" * 200_000 + b'": 1}}')


def test_a_rollback_keeps_what_was_changed(local: LocalRuns) -> None:
    """Whoever lowers the rate before it diverges does not want it back for having diverged."""
    run = local.open(local.create("rollback-keeps", {"train.on_nonfinite": "rollback", "eval.interval_steps": 0}))
    set_at(run, 14, LR_SCALE, 0.5)  # saved already, so the checkpoint may not hold it
    forward, calls = run.forward, 0

    def bad_once(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(x, y) * (float("nan") if calls == 2 * 17 else 1.0)

    run.forward = bad_once
    killed(run, 19)
    assert [event["from_step"] for event in local.events(run.paths, "run_resumed")] == [14]
    assert run.settings[LR_SCALE] == 0.5
    again = local.open(run.paths)
    assert (again.progress.step, again.settings[LR_SCALE]) == (14, 0.5)
    again.events.close()
