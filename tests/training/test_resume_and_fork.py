"""Going on with a run whose configuration, data or environment changed, and making another run of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from gpuworkbench.config.loader import Override
from gpuworkbench.errors import CheckpointError, ConfigError, DataError, RunError
from gpuworkbench.io import Files
from gpuworkbench.launch.fork import fork
from gpuworkbench.launch.resume import resume, run_config
from gpuworkbench.runs.create import run_files, write_attempt_file
from gpuworkbench.runs.env_record import read_env
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import load_run_config
from tests.fixtures.faulty_files import FaultyFiles
from tests.fixtures.local_run import LocalRuns, final_tensors, killed

CONSTANT = {"schedule.name": "constant"}


def forked(local: LocalRuns, parent: RunPaths, run_id: str, sets: dict[str, Any], **kwargs: Any) -> RunPaths:
    overrides = tuple(Override(key, value, "--set") for key, value in sets.items())
    return fork(parent, local.workspace.runs, sets=overrides, run_id=run_id, environ={}, **kwargs)


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def parent(local: LocalRuns) -> RunPaths:
    """24 steps at a constant rate; the last checkpoint is of step 24."""
    return local.trained("parent", {**CONSTANT, "train.max_steps": 24})


@pytest.fixture(scope="module")
def whole(local: LocalRuns) -> RunPaths:
    return local.trained("whole", CONSTANT)


# Forking


def test_a_fork_starts_from_the_checkpoint_and_leaves_the_parent_alone(
    local: LocalRuns, parent: RunPaths, whole: RunPaths
) -> None:
    before = tree(parent.root)
    child = forked(local, parent, "child", {"train.max_steps": 40})
    assert run_config(child).forked_from == "parent@24"
    assert [reference.step for reference in list_checkpoints(child)] == [24]
    assert local.attempt(child) == 0
    assert tree(parent.root) == before
    (started,) = local.events(child, "run_started")
    assert (started["from_step"], started["attempt"]) == (24, 1)
    expected = {step: loss for step, loss in local.losses(whole).items() if step > 24}
    assert local.losses(child) == expected, "a fork without other changes goes on as its parent would have"
    assert final_tensors(child, 40) == final_tensors(whole, 40)


def test_a_fork_may_change_what_a_resume_may_not(local: LocalRuns, parent: RunPaths, whole: RunPaths) -> None:
    with pytest.raises(ConfigError, match=r"parent: optimizer\.lr: 0\.01 -> 0\.002 would make it another run") as e:
        local.change(parent, {"optimizer.lr": 0.002})
    assert "--fork" in e.value.hint
    assert run_files(parent) == [parent.run_toml], "a refusal leaves no run file"
    child = forked(local, parent, "slower", {"optimizer.lr": 0.002, "train.max_steps": 30})
    assert local.attempt(child) == 0
    assert {event["lr"] for event in local.events(child, "step")} == {0.002}
    losses = local.losses(child)
    assert losses[25] == local.losses(whole)[25], "the loss of a step comes before its update"
    assert losses[27] != local.losses(whole)[27]


def test_a_fork_keeps_the_model(local: LocalRuns, parent: RunPaths) -> None:
    with pytest.raises(ConfigError, match="a fork keeps the model"):
        forked(local, parent, "larger", {"model.n_layer": 3})
    assert not (local.workspace.runs / "larger").exists()


def test_the_steps_of_a_fork_are_those_that_were_asked_for(local: LocalRuns) -> None:
    """Not what the parent's epochs amount to."""
    first = local.create("epochs", {**CONSTANT, "train.max_steps": 7, "train.max_epochs": 0.1})
    assert local.attempt(first) == 0
    child = fork(first, local.workspace.runs, steps=30, run_id="more-epochs", environ={})
    assert run_config(child).train.max_steps == 30


def test_a_fork_takes_the_newest_intact_checkpoint(local: LocalRuns, parent: RunPaths) -> None:
    copy = RunPaths(local.workspace.runs / "damaged-parent")
    shutil.copytree(parent.root, copy.root)
    path = copy.checkpoint(24) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    child = forked(local, copy, "from-before", {})
    assert run_config(child).forked_from == f"damaged-parent@{list_checkpoints(child)[0].step}"
    assert list_checkpoints(child)[0].step == list_checkpoints(copy)[1].step < 24
    shutil.rmtree(copy.checkpoints)
    copy.checkpoints.mkdir()
    with pytest.raises(CheckpointError, match="it has none yet"):
        forked(local, copy, "from-nothing", {})
    assert not (local.workspace.runs / "from-nothing").exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_fork_is_there_with_its_checkpoint_or_not_at_all(local: LocalRuns, parent: RunPaths, error: int) -> None:
    """Without its checkpoint it would silently train from nothing."""
    counting = FaultyFiles()
    forked(local, parent, f"counted-{error}", {}, files=counting)
    names = set(os.listdir(local.workspace.runs))
    for fail_at in range(1, counting.count + 1):
        files = FaultyFiles(fail_at=fail_at, error=error)
        run_id = f"fails-{error}-{fail_at}"
        with pytest.raises(RunError, match=os.strerror(error)):
            forked(local, parent, run_id, {}, files=files)
        assert set(os.listdir(local.workspace.runs)) == names, files.failed


class Retiring(Files):
    """The parent goes on training and takes the checkpoint away while it is copied."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.copied = 0

    def open_write(self, path: Path) -> int:
        self.copied += ".tmp-" in path.parent.name and path.suffix == ".safetensors"
        if self.copied == 2 and self.checkpoint.exists():
            shutil.rmtree(self.checkpoint)
        return super().open_write(path)


def test_a_checkpoint_that_goes_while_it_is_copied_is_one_line(local: LocalRuns, parent: RunPaths) -> None:
    copy = RunPaths(local.workspace.runs / "retiring")
    shutil.copytree(parent.root, copy.root)
    with pytest.raises(CheckpointError, match="step-00000024 went while it was copied"):
        forked(local, copy, "too-late", {}, files=Retiring(copy.checkpoint(24)))
    assert not (local.workspace.runs / "too-late").exists()


# Resuming with changes


def test_a_free_change_is_written_once_and_told(local: LocalRuns) -> None:
    paths = local.trained("extended", {**CONSTANT, "train.max_steps": 10})
    original = paths.run_toml.read_bytes()
    run_file = local.change(paths, {"train.max_steps": 14, "eval.interval_steps": 0})
    assert run_file.name == "run.2.toml"
    assert paths.run_toml.read_bytes() == original
    assert local.attempt(paths) == 0
    changes = {(e["key"], e["old"], e["new"]) for e in local.events(paths, "config_changed")}
    assert changes == {("train.max_steps", 10, 14), ("eval.interval_steps", 10, 0)}
    assert local.attempt(paths) == 0
    assert len(local.events(paths, "config_changed")) == 2, "an attempt without changes tells none"
    assert local.change(paths, {}).name == "run.2.toml"
    assert [record["run_file"] for record in read_env(paths)] == ["run.toml", "run.2.toml", "run.2.toml"]


def test_a_run_file_of_a_refused_resume_is_told_when_it_comes_to_hold(local: LocalRuns) -> None:
    """The trainer of attempt 2 never came to its first event; the numbers of file and attempt differ from then on."""
    paths = local.trained("skipped-number", {**CONSTANT, "train.max_steps": 7})
    local.change(paths, {"train.max_steps": 9})
    local.change(paths, {"train.max_steps": 11})
    assert [path.name for path in run_files(paths)] == ["run.toml", "run.2.toml", "run.3.toml"]
    assert local.attempt(paths) == 0
    assert [(e["old"], e["new"]) for e in local.events(paths, "config_changed")] == [(7, 11)]


def test_simultaneous_resumes_write_a_file_each(local: LocalRuns) -> None:
    paths = local.create("simultaneous")
    names, barrier = [], threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait()
        names.append((write_attempt_file(paths, b"# %d" % number).name, number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in names) == [f"run.{number}.toml" for number in range(2, 10)]
    assert all((paths.root / name).read_bytes() == b"# %d" % number for name, number in names)
    assert not [name for name in os.listdir(paths.root) if name.startswith(".tmp-")]


class NoLinks(Files):
    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")


def test_a_run_file_can_be_written_where_there_are_no_hard_links(local: LocalRuns) -> None:
    paths = local.create("no-links")
    assert write_attempt_file(paths, b"x", NoLinks()).name == "run.2.toml"
    assert not [name for name in os.listdir(paths.root) if name.startswith(".tmp-")]


def test_each_operation_of_writing_a_run_file_fails_once(local: LocalRuns) -> None:
    paths = local.create("no-room")
    counting = FaultyFiles()
    write_attempt_file(paths, b"x" * 100, counting).unlink()
    for fail_at in range(1, counting.count + 1):
        files = FaultyFiles(fail_at=fail_at)
        with contextlib.suppress(RunError):
            write_attempt_file(paths, b"x" * 100, files)
        for path in run_files(paths)[1:]:
            assert path.read_bytes() == b"x" * 100, "a run file is whole or not there"
            path.unlink()
        for leftover in paths.root.glob(".tmp-*"):
            assert files.failed is not None
            assert files.failed.kind == "unlink"
            leftover.unlink()


def test_the_trainer_trains_by_the_file_it_is_told(local: LocalRuns) -> None:
    paths = local.create("told")
    local.change(paths, {"train.max_steps": 50})
    assert load_run_config(paths)[0].train.max_steps == 50
    assert load_run_config(paths, "run.toml")[0].train.max_steps == 40
    for name in ("run.3.toml", "preset.toml", "../told/run.toml", "/etc/passwd", ""):
        with pytest.raises(RunError, match="is no run file"):
            load_run_config(paths, name)


def test_fewer_steps_than_are_done_are_refused(local: LocalRuns, parent: RunPaths) -> None:
    with pytest.raises(ConfigError, match="parent is already at step 24"):
        resume(parent, steps=20, environ={})


def test_changed_data_is_refused_at_a_resume_and_allowed_in_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.fixtures.local_run import torch_settings

    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    with torch_settings():
        local = LocalRuns(tmp_path)
        paths = local.trained("data", {**CONSTANT, "train.max_steps": 7})
        corpus = local.workspace.corpus
        corpus.write_text(corpus.read_text().replace("small", "great"))
        with pytest.raises(DataError, match="gives other tokens than this run was made with"):
            local.change(paths, {"train.max_steps": 9})
        assert run_files(paths) == [paths.run_toml]
        capsys.readouterr()
        assert local.attempt(paths) == 2, "nor does the trainer take them"
        _, line = capsys.readouterr().err.splitlines()
        assert "gives other tokens than this run was made with" in line
        assert "--fork" in line
        (error,) = local.events(paths, "error")
        assert error["kind"] == "data"
        assert local.events(paths)[-1]["exit_code"] == 2
        child = forked(local, paths, "other-data", {"train.max_steps": 9})
        assert local.attempt(child) == 0
        corpus.unlink()
        with pytest.raises(DataError):
            forked(local, paths, "no-data", {})
        assert not (local.workspace.runs / "no-data").exists()


def test_another_environment_is_told(local: LocalRuns) -> None:
    paths = local.trained("environment", {**CONSTANT, "train.max_steps": 7})
    assert [e for e in local.events(paths, "warning") if e["code"] == "environment_changed"] == []
    text = paths.env.read_text()
    torch_line = next(line for line in text.splitlines() if '"torch"' in line)
    paths.env.write_text(text.replace(torch_line, '"torch": "1.0",'))
    local.change(paths, {"train.max_steps": 9})
    assert local.attempt(paths) == 0
    (warning,) = [e for e in local.events(paths, "warning") if e["code"] == "environment_changed"]
    assert "torch 1.0 -> 2" in warning["message"]
    assert "threads" not in warning["message"]


def test_leftovers_of_killed_trainers_go(local: LocalRuns) -> None:
    paths = local.create("leftovers")
    killed(local.open(paths), 16)
    kept = paths.root / ".tmp-1-run.2.toml"  # of a launcher that may be alive
    for name in (".tmp-1-heartbeat.json", ".tmp-2-env.json", ".tmp-3-events.idx"):
        (paths.root / name).write_text("{")
    kept.write_text("")
    (paths.checkpoints / ".tmp-1-step-00000021").mkdir()
    from gpuworkbench.training.__main__ import _discard_own_leftovers

    _discard_own_leftovers(paths)
    assert local.attempt(paths) == 0
    assert [name for name in os.listdir(paths.root) if name.startswith(".tmp")] == [kept.name]
    assert [name for name in os.listdir(paths.checkpoints) if name.startswith(".")] == []
