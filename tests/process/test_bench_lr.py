"""`gpuworkbench bench lr` as a person uses it: found, stopped, killed, gone on with, saved, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from gpuworkbench.cli import main
from gpuworkbench.commands import bench_lr
from gpuworkbench.commands.bench_lr import Search, trial_config
from gpuworkbench.config.loader import build
from gpuworkbench.config.toml_io import parse_toml
from gpuworkbench.launch.create import LaunchRequest, create
from gpuworkbench.plan.lr_search import Trial
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.training.__main__ import _attempt
from gpuworkbench.training.controls import Signals
from tests.fixtures.hf_folders import save_gpt2
from tests.fixtures.local_run import torch_settings
from tests.fixtures.tiny_run import Workspace, wait_until

RATES = "0.001,0.004,0.016"


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


def arguments(workspace: Workspace, out: Path, *more: str) -> list[str]:
    return ["bench", "lr", "--preset", str(workspace.preset), "--out", str(out), *more]


def trial_files(out: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("trial-*.json")}


@pytest.mark.usefixtures("here")
def test_stopped_and_killed_it_goes_on_and_the_preset_it_saves_trains(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "search"
    command = arguments(workspace, out, "--steps", "120", "--lrs", RATES, "--save-preset", "tuned", "--json")
    # Ctrl-C: one line how to go on, exit 75, the finished trials stay
    with workspace.start(*command) as first:
        wait_until(lambda: probe_lock(out / "lock"), what="search")
        # another process cannot work on the same search
        second = workspace.call(*command)
        assert (second.returncode, second.stdout) == (3, "")
        assert "is locked by process" in second.stderr.splitlines()[-1]
        wait_until(lambda: trial_files(out), what="trial")
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=60)
    assert first.returncode == 75
    assert err.splitlines()[-1].startswith("stopped; finished trials are kept, go on with: gpuworkbench bench lr ")
    assert probe_lock(out / "lock") is None
    kept = trial_files(out)
    assert 1 <= len(kept) < 3
    # SIGKILL of the command: the searching process ends by itself
    with workspace.start(*command, stderr=subprocess.DEVNULL) as killed:
        wait_until(lambda: probe_lock(out / "lock"), what="search")
        killed.kill()
    wait_until(lambda: probe_lock(out / "lock") is None, what="end of the searching process")
    assert "tuned" not in str(list(workspace.root.rglob("*.toml")))
    # to its end
    done = workspace.call(*command)
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stderr
    found = json.loads(done.stdout)
    assert [rate["lr"] for rate in found["rates"]] == [0.001, 0.004, 0.016]
    assert found["best"] == min(found["rates"], key=lambda rate: rate["val_loss"])
    assert {name: value for name, value in trial_files(out).items() if name in kept} == kept
    assert workspace.root / "config" in Path(found["saved_preset"]).parents
    # what it saved is a preset that trains at that rate
    paths = create(LaunchRequest(preset="tuned", runs_dir=workspace.runs, steps=2, run_id="tuned"))
    with torch_settings():
        assert _attempt(paths, Signals(), None) == 0
    assert workspace.events("tuned")[0]["type"] == "run_started"
    assert f"lr = {found['best']['lr']:g}" in paths.run_toml.read_text()
    # the preset is not replaced unasked
    again = workspace.call(*command)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "you have a preset tuned already; choose another name, or replace it with --force" in again.stderr
    assert trial_files(out).keys() == {f"trial-{lr!r}-1337.json" for lr in (0.001, 0.004, 0.016)}


def test_a_search_of_its_own_accord(workspace: Workspace) -> None:
    runs = list(workspace.runs.glob("*"))
    result = workspace.call(
        "bench", "lr", "--preset", str(workspace.preset), "--steps", "8", "--set", "optimizer.name=lion"
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny, lion: 8 steps a trial, 1 seed(s)"
    assert lines[1].startswith("range test  1.0e-06 ")
    assert any(line.startswith("best: optimizer.lr = ") for line in lines)
    assert any("the preset trains 40" in line for line in lines)
    (directory,) = (workspace.root / "data" / "gpuworkbench" / "bench").iterdir()
    assert directory.name.startswith("lr-tiny-")
    assert list(workspace.runs.glob("*")) == runs, "a search leaves no runs"


@pytest.mark.usefixtures("here")
def test_where_all_diverged_it_says_so_and_fails(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All trials are there already, so nothing is trained."""

    def stopped(search: Search) -> int:
        for lr in (1.0, 2.0):
            trial = Trial(lr=lr, seed=1337, losses=(5.0, None), val_loss=None, diverged="loss is nan", seconds=1.0)
            search.files.write(search.files.trial(lr, 1337), trial)
        return 75

    command = arguments(workspace, tmp_path / "all", "--steps", "3", "--lrs", "1,2")
    with monkeypatch.context() as patch:
        patch.setattr(bench_lr, "follow", stopped)
        assert main(command) == 75
    capsys.readouterr()
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out.count("diverged: loss is nan") == 2
    assert "every rate diverged" in said.err.splitlines()[-1]
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["best"] is None


REFUSED = {
    "no measurement": (["bench"], "required: WHAT"),
    "unknown measurement": (["bench", "lrr"], "there is no command 'lrr'"),
    "no preset": (["bench", "lr"], "required: --preset"),
    "unknown preset": (["bench", "lr", "--preset", "quikstart"], "did you mean 'quickstart'"),
    "two ways": (["--lrs", "1e-3", "--min", "1e-4", "--max", "1"], "--lrs names the rates"),
    "half a grid": (["--min", "1e-4"], "a grid needs both of its ends"),
    "points alone": (["--points", "3"], "a grid needs both of its ends"),
    "upside down": (["--min", "1", "--max", "1e-4"], "--min 1 is not below --max 0.0001"),
    "no number": (["--lrs", "fast"], "'fast' is not a learning rate"),
    "negative": (["--lrs=1e-3,-1"], "'-1' is not a learning rate"),
    "nan": (["--lrs", "nan"], "'nan' is not a learning rate"),
    "infinite": (["--max", "inf"], "'inf' is not a learning rate"),
    "too many": (["--lrs", ",".join(str(i) for i in range(1, 99))], "98 rates are more than 64"),
    "too many seeds": (["--seeds", "65"], "65 seeds are more than 64"),
    "no steps": (["--steps", "0"], "'0' is not a whole number from 1 on"),
    "the rate": (["--set", "optimizer.lr=1"], "--set optimizer.lr is what a search decides; use --lrs"),
    "the steps": (["--set", "train.max_steps=1"], "is what a search decides; use --steps"),
    "a stray key": (["--set", "optimizer.name=sgd", "--set", "optimizer.eps=1"], "has no effect with optimizer.name"),
    "force alone": (["--force"], "--force is for --save-preset"),
    "a bad name": (["--save-preset", "../x"], "is no preset name"),
    "no validation": (["--set", "eval.tokens=7", "--set", "eval.interval_steps=0"], "eval.tokens: 7 does not divide"),
    "another's flag": (["--headless"], "--headless is not for `bench`"),
    "an unknown flag": (["--sed", "1"], "there is no flag '--sed' of `bench`"),
    "a place that is a file": (["--out", "/dev/null"], "cannot be written"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_leave_nothing(
    case: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, since none of them gets as far as a process of its own."""
    given, words = REFUSED[case]
    out = tmp_path / "out"
    code = main(given if given[0] == "bench" else arguments(workspace, out, *given))
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    said = [line for line in lines if not line.startswith("data: ")]
    assert len(said) == 1
    assert words in said[0]
    assert not os.path.lexists(out)


def test_a_curriculum_shorter_than_the_trials_first_token_stays_one(workspace: Workspace) -> None:
    """9 tokens of 40 steps are less than half a token of a trial of one step."""
    keys = "[schedule]\nseq_len_start = 8\nseq_len_warmup_tokens = 9"
    text = workspace.preset.read_text().replace("[schedule]", keys)
    config = build(parse_toml(text.encode(), "a preset"), "a preset")
    trial = trial_config(config, 1, set())
    assert (trial.schedule.seq_len_start, trial.schedule.seq_len_warmup_tokens) == (8, 1)


@pytest.mark.usefixtures("here")
def test_seeds_that_would_all_be_the_same_training_are_refused(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Published weights are no seed's: only dropout, where there is any, is drawn from it."""
    folder, out = save_gpt2(tmp_path / "published"), tmp_path / "out"
    command = arguments(workspace, out, "--set", f"train.init_from={folder}", "--steps", "1", "--lrs", "1e-3")
    assert main([*command, "--seeds", "2", "--set", "model.dropout=0.0"]) == 2
    assert "every seed is the same training" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
