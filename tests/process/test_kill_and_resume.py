"""The first promise: a run killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.tiny_run import PRESET, Workspace, wait_until

STEPS = 100
# After the last kill there are so many steps left that who looks late still finds a run to kill.
LONG = PRESET.replace("max_steps = 40", f"max_steps = {STEPS}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], dict[str, bytes], dict[int, float]]:
    """Losses, final tensors and validation losses of a run that nobody disturbed."""
    workspace = Workspace(tmp_path_factory.mktemp("reference"), LONG)
    result = workspace.train("whole")
    assert result.returncode == 0, result.stderr
    evals = {e["step"]: e["loss"] for e in workspace.events("whole") if e["type"] == "eval"}
    return workspace.losses("whole"), workspace.final_files("whole", STEPS), evals


def start_and_kill(workspace: Workspace, arguments: list[str], run_id: str, at_step: int) -> None:
    """Start headless, SIGKILL the trainer once it has done `at_step`, and let headless end."""
    process = workspace.start("--headless", *arguments)
    wait_until(lambda: max(workspace.losses(run_id), default=0) >= at_step, what=f"step {at_step}")
    workspace.kill_trainer(run_id)
    process.communicate(timeout=60)
    assert process.returncode == 128 + 9


@pytest.mark.parametrize("kill_steps", [(3,), (8,), (21,), (5, 17, 30)], ids=str)
def test_killed_runs_resume_bit_identically(
    tmp_path: Path,
    reference: tuple[dict[int, float], dict[str, bytes], dict[int, float]],
    kill_steps: tuple[int, ...],
) -> None:
    losses, tensors, evals = reference
    workspace = Workspace(tmp_path, LONG)
    arguments = ["--preset", str(workspace.preset), "--run-id", "killed"]
    for at_step in kill_steps:
        start_and_kill(workspace, arguments, "killed", at_step)
        arguments = ["--resume", "killed"]
    result = workspace.resume("killed")
    assert result.returncode == 0, result.stderr

    assert workspace.losses("killed") == losses
    assert {e["step"]: e["loss"] for e in workspace.events("killed") if e["type"] == "eval"} == evals
    assert workspace.final_files("killed", STEPS) == tensors
    attempts = [e["attempt"] for e in workspace.events("killed") if e["type"] in ("run_started", "run_resumed")]
    assert attempts == list(range(1, len(kill_steps) + 2))


def test_stopped_and_extended_run_equals_one_of_that_length_with_a_constant_rate(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    constant = ("--set", "schedule.name=constant")
    assert workspace.train("whole", *constant).returncode == 0
    assert workspace.train("short", *constant, "--steps", "23").returncode == 0
    extended = workspace.resume("short", "--steps", "40")
    assert extended.returncode == 0, extended.stderr
    assert workspace.losses("short") == workspace.losses("whole")
    assert workspace.final_files("short", 40) == workspace.final_files("whole", 40)
    changed = [e for e in workspace.events("short") if e["type"] == "config_changed"]
    assert [(e["key"], e["old"], e["new"]) for e in changed] == [("train.max_steps", 23, 40)]


def test_every_step_of_a_killed_run_has_the_rate_of_the_schedule_and_every_validation_happens_once(
    tmp_path: Path,
) -> None:
    from gpuworkbench.config.schema import ScheduleConfig
    from gpuworkbench.training.lr_schedule import lr_multiplier

    workspace = Workspace(tmp_path, LONG)
    start_and_kill(workspace, ["--preset", str(workspace.preset), "--run-id", "killed"], "killed", 24)
    assert workspace.resume("killed").returncode == 0
    schedule = ScheduleConfig(name="cosine", warmup_steps=4)
    for event in workspace.events("killed"):
        if event["type"] == "step":
            assert event["lr"] == 0.01 * lr_multiplier(event["step"], schedule, STEPS)
    from_step = next(e["from_step"] for e in workspace.events("killed") if e["type"] == "run_resumed")
    later = [e["step"] for e in workspace.events("killed") if e["type"] == "eval" and e["attempt"] == 2]
    assert later == [step for step in range(10, STEPS + 1, 10) if step > from_step]
