"""A real trainer with predicted progress, killed within it, goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.tiny_run import PRESET, Workspace, wait_until

STEPS = 80  # so many after the kill that who looks late still finds a run to kill
SETS = {
    "hybrid.enabled": "true",
    "hybrid.predictor": "line_jump",
    "hybrid.warmup_steps": "3",
    "hybrid.full_steps": "4",
    "hybrid.correct_steps": "2",
    "hybrid.exploration": "9",
    "hybrid.max_predict_steps": "9",
    "optimizer.lr": "2e-4",  # so small that jumps are accepted
    "schedule.name": "constant",
    "checkpoint.interval_steps": "1",
    "sample.interval_steps": "0",
}


@pytest.mark.parametrize("undo_storage", ["memory", "disk"])
def test_a_trainer_killed_within_a_prediction_resumes_bit_identically(tmp_path: Path, undo_storage: str) -> None:
    workspace = Workspace(tmp_path, PRESET.replace("max_steps = 40", f"max_steps = {STEPS}"))
    sets = {**SETS, "hybrid.undo_storage": undo_storage}
    arguments = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    assert workspace.train("whole", *arguments).returncode == 0
    phases = {event["step"]: event["phase"] for event in workspace.events("whole") if event["type"] == "step"}
    predicted = [step for step, phase in phases.items() if phase == "predict"]
    assert len(predicted) >= 2

    process = workspace.start("--headless", "--preset", str(workspace.preset), "--run-id", "killed", *arguments)
    wait_until(lambda: max(workspace.losses("killed"), default=0) >= predicted[1], what=f"step {predicted[1]}")
    workspace.kill_trainer("killed")
    process.communicate(timeout=60)
    assert process.returncode == 128 + 9
    left = list((workspace.runs / "killed").glob(".tmp-*undo*"))
    assert sum(path.stat().st_size for path in left) == 0, "a dead trainer's bytes"
    result = workspace.resume("killed")
    assert result.returncode == 0, result.stderr
    assert not list((workspace.runs / "killed").glob(".tmp-*undo*")), "a dead trainer's name"
    assert workspace.losses("killed") == workspace.losses("whole")
    assert workspace.final_files("killed", STEPS) == workspace.final_files("whole", STEPS)
