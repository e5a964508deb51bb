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


def test_small_formats_and_streamed_state_are_measured(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    names = ["packed AdamW, in backward", "streamed state, bf16 weights"]
    flags = [word for name in names for word in ("--case", name)]
    preset = str(workspace.preset)
    done = workspace.call(
        "bench", "memory", "--preset", preset, "--steps", "3", "--rounds", "1", *flags, "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    plain, packed, streamed = json.loads(out.read_text())["cases"]
    assert [packed["name"], streamed["name"]] == names
    assert packed["refused"] == streamed["refused"] == ""
    assert packed["val_loss"] == pytest.approx(plain["val_loss"], rel=0.01)
    assert streamed["val_loss"] == pytest.approx(plain["val_loss"], rel=0.01)
    assert streamed["offloaded_bytes"] > 0
