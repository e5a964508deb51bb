"""`gpuworkbench bench hybrid` as a person uses it: whole, stopped, killed between trials, gone on with, refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gpuworkbench.cli import main
from gpuworkbench.runs.lock import probe_lock
from tests.fixtures.tiny_run import Workspace, wait_until

BUDGETS = (3, 4, 6, 9)
ARMS = ("baseline", "null", "outer_nesterov", "ema_eval")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("bench"))
    made.environ["XDG_DATA_HOME"] = str(made.root / "data")
    return made


@pytest.fixture
def here(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workspace's directories for a command that is answered in this process."""
    for name in ("GPUWORKBENCH_CACHE_DIR", "GPUWORKBENCH_RUNS_DIR", "XDG_CONFIG_HOME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, workspace.environ[name])


def arguments(workspace: Workspace, place: Path, *more: str) -> list[str]:
    return ["bench", "hybrid", "--preset", str(workspace.preset), "--dir", str(place), *more]


def trial_files(place: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.glob("trial-*.json")}


def test_stopped_and_killed_between_trials_it_goes_on_to_the_whole_result(workspace: Workspace, tmp_path: Path) -> None:
    """Two seeds, five arms, everything that the result and its pictures must hold."""
    flags = [
        *("--seeds", "2", "--budgets", ",".join(map(str, BUDGETS)), "--arms", ",".join(ARMS[1:]), "--lrs", "0.01"),
        *("--schedules", "linear", "--set", "hybrid.full_steps=2", "--set", "hybrid.warmup_steps=2", "--json"),
        *("--arm", "bold=outer_nesterov,hybrid.outer_lr=0.9,hybrid.correct_steps=1"),
    ]
    place, out = tmp_path / "broken", tmp_path / "hybrid-tiny.json"
    command = arguments(workspace, place, *flags, "--out", str(out))
    # Ctrl-C: one line how to go on, exit 75, the finished trials stay
    with workspace.start(*command) as first:
        wait_until(lambda: trial_files(place), what="trial")
        registered = (place / "preregistration.json").read_bytes()
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=60)
    assert first.returncode == 75
    assert err.splitlines()[-1].startswith("stopped; finished trials are kept, go on with: gpuworkbench bench hybrid ")
    assert probe_lock(place / "lock") is None
    kept = trial_files(place)
    assert kept
    assert not out.exists()
    # SIGKILL of the command: the training process ends by itself
    with workspace.start(*command, stderr=subprocess.DEVNULL) as killed:
        wait_until(lambda: len(trial_files(place)) > len(kept), what="another trial")
        killed.kill()
    wait_until(lambda: probe_lock(place / "lock") is None, what="end of the training process")
    kept |= trial_files(place)
    # to its end
    done = workspace.call(*command)
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stderr
    assert {name: value for name, value in trial_files(place).items() if name in kept} == kept
    result = json.loads(out.read_text())
    printed = json.loads(done.stdout)
    assert printed["arms"] == result["arms"]
    # what was decided beforehand is what it was before the first trial, and its hash is in the result
    assert (place / "preregistration.json").read_bytes() == registered
    assert result["preregistration_sha256"] == hashlib.sha256(registered).hexdigest()
    assert result["preregistration"] == json.loads(registered)
    check_result(result)
    check_pictures([Path(name) for name in printed["files"]], out)
    # nothing is left to do: the same command only reports, and says so in a table
    table = workspace.call(*(word for word in command if word != "--json"))
    assert table.returncode == 0, table.stderr
    assert "starting" not in table.stderr
    assert any(line.startswith("outer_nesterov  ") for line in table.stdout.splitlines())


def check_result(result: dict[str, Any]) -> None:
    assert result["is_complete"]
    assert list(result["arms"]) == [*ARMS, "bold"]
    assert result["seeds"] == [1337, 1338]
    assert result["tuning_seeds"] == [11337]
    assert (result["budgets"], result["reference"]) == (list(BUDGETS), 6)
    assert result["tuned"]["schedule"] == "linear"
    losses = {(t["arm"], t["seed"], t["steps"]): t["val_loss"] for t in result["trials"]}
    for name, arm in result["arms"].items():
        low, high = arm["interval"]
        assert low <= arm["speedup"] <= high
        for index, seed in enumerate(result["seeds"]):
            assert [arm["loss"][str(b)][index] for b in BUDGETS] == [losses[name, seed, b] for b in BUDGETS]
    baseline, null = result["arms"]["baseline"], result["arms"]["null"]
    assert baseline["speedup"] == 1.0
    assert baseline["cost_per_step"] == 1.0
    assert null["cost_per_step"] > 1.0, "probes are part of the work"
    assert null["counts"]["accepted"] > 0
    assert result["arms"]["ema_eval"]["loss"] != baseline["loss"]
    assert result["arms"]["bold"]["sets"]["hybrid.outer_lr"] == 0.9
    assert result["arms"]["bold"]["loss"] != result["arms"]["outer_nesterov"]["loss"]


def check_pictures(files: list[Path], out: Path) -> None:
    stem = out.with_suffix("").name
    assert [path.name for path in files] == [
        out.name,
        f"{stem}-loss.svg",
        f"{stem}-difference.svg",
        f"{stem}-speedup.svg",
    ]
    for path in files[1:]:
        ElementTree.fromstring(path.read_text())
        assert "outer_nesterov" in path.read_text()


REFUSED = {
    "no preset": (["bench", "hybrid"], "required: --preset"),
    "unknown preset": (["bench", "hybrid", "--preset", "quikstart"], "did you mean 'quickstart'"),
    "one seed": (["--seeds", "1"], "one seed has no interval"),
    "too many seeds": (["--seeds", "65"], "65 seeds are more than 64"),
    "no budgets": (["--budgets", "10,x"], "'x' is not a whole number from 1 on"),
    "few budgets": (["--budgets", "10,20,20,30"], "3 budgets are too few"),
    "a stray reference": (["--budgets", "4,6,8,12", "--reference", "7"], "--reference 7 is not one of the budgets"),
    "unknown arm": (["--arms", "outer_nestero"], "did you mean 'outer_nesterov'"),
    "no arm": (["--arms", "null,,random"], "is not a list of names"),
    "an arm without a base": (["--arm", "mine"], "is not NAME=ARM,KEY=VALUE"),
    "an arm's name": (["--arm", "../x=null"], "is not NAME=ARM,KEY=VALUE"),
    "a taken name": (["--arm", "null=random"], "there is an arm of that name"),
    "an arm's odd key": (["--arm", "a=null,hybrid.outer_l=1"], "the arm a: 'hybrid.outer_l' is not a key"),
    "an arm's bad value": (["--arm", "a=null,hybrid.outer_lr=-1"], "hybrid.outer_lr = -1 is not a number"),
    "an arm's seed": (["--arm", "a=null,train.seed=1"], "train.seed is what a comparison decides"),
    "no equals": (["--arm", "a=null,hybrid.outer_lr"], "no '=' after a key"),
    "the predictor": (["--set", "hybrid.predictor=null"], "is what a comparison decides; use --arms"),
    "the bandit": (["--set", "hybrid.bandit=true"], "an arm, such as a control, is its predictor alone; give it to an"),
    "the switch": (["--set", "hybrid.enabled=true"], "is what a comparison decides; use --arms"),
    "the steps": (["--set", "train.max_steps=9"], "is what a comparison decides; use --budgets"),
    "untuned and rates": (["--untuned", "--lrs", "1e-3"], "--untuned tunes nothing"),
    "unknown schedule": (["--schedules", "linaer"], "did you mean 'linear'"),
    "no json": (["--out", "result.txt"], "the result is JSON"),
    "no directory": (["--out", "/nowhere/at/all.json"], "there is no directory for it"),
    "another's flag": (["--headless"], "--headless is not for `bench`"),
    "no validation": (["--set", "eval.tokens=7", "--set", "eval.interval_steps=0"], "eval.tokens: 7 does not divide"),
    "a place that is a file": (["--dir", "/dev/null"], "cannot be written"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_leave_nothing(
    case: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, since none of them gets as far as a process of its own."""
    given, words = REFUSED[case]
    place = tmp_path / "place"
    code = main(given if given[0] == "bench" else arguments(workspace, place, *given))
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    said = [line for line in lines if not line.startswith("data: ")]
    assert len(said) == 1
    assert words in said[0]
    assert not os.path.lexists(place)
