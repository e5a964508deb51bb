"""Creating a run directory, its attempt files, and discarding it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuworkbench.errors import RunError, UsageError
from gpuworkbench.runs.create import create_run, discard_run, newest_run_file, next_attempt_file
from gpuworkbench.runs.env_record import append_env, read_env
from gpuworkbench.runs.label import Label, read_label, write_label
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.paths import RunPaths
from tests.unit.run_helpers import write_events


def test_a_new_run_is_complete(tmp_path: Path) -> None:
    run = create_run(tmp_path / "runs", "first", b"preset", b"config")
    assert sorted(os.listdir(run.root)) == ["checkpoints", "control", "preset.toml", "run.toml", "samples"]
    assert (run.preset_toml.read_bytes(), run.run_toml.read_bytes()) == (b"preset", b"config")
    assert os.listdir(tmp_path / "runs") == ["first"]


def test_a_taken_id_is_refused_and_untouched(tmp_path: Path) -> None:
    run = create_run(tmp_path, "first", b"", b"config")
    with pytest.raises(RunError, match="first already exists"):
        create_run(tmp_path, "first", b"", b"other")
    assert run.run_toml.read_bytes() == b"config"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="already exists"):
        create_run(tmp_path, "dangling", b"", b"")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "first"]


def test_losing_the_race_for_an_id_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run(tmp_path, "first", b"", b"config")
    real, answers = os.path.lexists, [False]  # the id was free when it was looked at
    monkeypatch.setattr(os.path, "lexists", lambda path: answers.pop() if answers else real(path))
    with pytest.raises(RunError, match="already exists"):
        create_run(tmp_path, "first", b"", b"other")
    assert os.listdir(tmp_path) == ["first"]
    assert (tmp_path / "first" / "run.toml").read_bytes() == b"config"


def test_impossible_places_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot be made: ") as caught:
        create_run(tmp_path / "file", "run", b"", b"")
    assert "--runs-dir" in caught.value.line()
    with pytest.raises(UsageError):
        create_run(tmp_path, "../escape", b"", b"")
    assert os.listdir(tmp_path) == ["file"]


def test_attempt_files_count_on_from_files_and_events(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", b"", b"")
    assert newest_run_file(run) == run.run_toml
    assert next_attempt_file(run).name == "run.2.toml"
    write_events(run, [{"type": "run_resumed", "attempt": 4}])
    assert next_attempt_file(run).name == "run.5.toml"
    for name in ("run.10.toml", "run.9.toml", "run.x.toml", "run.011.toml", "run.12.toml.bak"):
        (run.root / name).touch()
    assert newest_run_file(run).name == "run.10.toml"
    assert next_attempt_file(run).name == "run.11.toml"


def test_a_run_that_trains_is_not_discarded(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", b"", b"")
    lock = RunLock(run.lock)
    lock.acquire()
    with pytest.raises(RunError, match="is being trained"):
        discard_run(run)
    lock.release()
    discard_run(run)
    assert os.listdir(tmp_path) == []


def test_discarding_follows_no_symlink(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    run = create_run(tmp_path / "runs", "run", b"", b"")
    (run.root / "link").symlink_to(tmp_path / "precious")
    discard_run(run)
    assert (tmp_path / "precious" / "file").exists()


def test_label_round_trip_and_tolerance(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", b"", b"")
    assert read_label(run) == Label()
    label = Label(name="the good one", notes="lr 6e-4\nsecond try", queue_position=2)
    write_label(run, label)
    assert read_label(run) == label
    for damaged in (b"", b"[", b'{"name": 3}', b"\xff", b"[" * 100_000, b" " * 300_000):
        run.label.write_bytes(damaged)
        assert read_label(run) == Label()
    with pytest.raises(RunError, match="too long"):
        write_label(run, Label(notes="x" * 200_000))
    with pytest.raises(RunError, match="not valid text"):
        write_label(run, Label(name="\udc80"))


def test_env_gets_one_record_an_attempt(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", b"", b"")
    append_env(run, 1, {"torch": "2.13.0", "threads": 2})
    append_env(run, 2, {"torch": "2.14.0"})
    assert read_env(run) == [{"attempt": 1, "torch": "2.13.0", "threads": 2}, {"attempt": 2, "torch": "2.14.0"}]
    run.env.write_bytes(b"{torn")
    append_env(run, 3, {})
    assert read_env(run) == [{"attempt": 3}]
    assert run.env.with_name("env.json.damaged").read_bytes() == b"{torn"


def test_paths_of_a_run_are_values() -> None:
    assert RunPaths(Path("a")) == RunPaths(Path("a"))
