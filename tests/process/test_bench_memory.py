"""`gpuworkbench bench memory` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.tiny_run import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("bench"))


def test_two_strategies_measured_and_stored(workspace: Workspace, tmp_path: Path) -> None:
    out, profile = tmp_path / "result.json", tmp_path / "profile.csv"
    done = workspace.call(
        "bench", "memory", "--preset", str(workspace.preset), "--steps", "3", "--rounds", "1",
        "--case", "checkpointing: all", "--case", "predict-aware offload",
        "--out", str(out), "--snapshot", str(profile), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(out.read_text())
    plain, checkpointed, offloaded = json.loads(out.read_text())["cases"]
    assert [case["name"] for case in (checkpointed, offloaded)] == ["checkpointing: all", "predict-aware offload"]
    assert checkpointed["peak_full_bytes"] < plain["peak_full_bytes"]
    assert offloaded["peak_predict_bytes"] < plain["peak_predict_bytes"]
    assert offloaded["offloaded_bytes"] > 0 == plain["offloaded_bytes"]
    assert checkpointed["val_loss"] == offloaded["val_loss"] == plain["val_loss"]
    assert all(case["step_time_ratio"] > 0 and len(case["step_times_s"]) == 1 for case in (plain, checkpointed))
    assert profile.read_text().startswith("seconds,bytes,label\n")
    assert ",predict\n" in profile.read_text()
