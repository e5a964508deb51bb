"""Deleting runs: gone at once and whole, or untouched; never one that a trainer is at."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuworkbench.errors import RunError, RunLockedError
from gpuworkbench.runs.delete import DELETED_PREFIX, delete_run, sweep
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.store import list_runs
from tests.fixtures.faulty_files import FaultyFiles, PowerCut
from tests.fixtures.recorded_run import completed_run, crashed_run, new_run

HOLD = """\
import sys
from pathlib import Path
from gpuworkbench.runs.lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_run_goes_with_all_it_holds(tmp_path: Path) -> None:
    paths, other = crashed_run(tmp_path), completed_run(tmp_path)
    (paths.root / "outside").symlink_to(other.root)
    before = content(other.root)
    delete_run(paths)
    assert os.listdir(tmp_path) == [other.run_id]
    assert content(other.root) == before


def test_a_trained_run_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    paths = completed_run(tmp_path)
    command = [sys.executable, "-c", HOLD, str(paths.lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "held\n"
        before = content(paths.root)
        with pytest.raises(RunLockedError, match="is running"):
            delete_run(paths)
        assert content(paths.root) == before
        trainer.communicate("")
    delete_run(paths)
    assert not paths.root.exists()


def test_a_run_that_is_just_starting_is_refused(tmp_path: Path) -> None:
    paths = new_run(tmp_path, "starting")
    with pytest.raises(RunLockedError):
        delete_run(paths)
    assert paths.root.is_dir()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EIO])
def test_what_cannot_be_moved_stays_whole(tmp_path: Path, error: int) -> None:
    paths = completed_run(tmp_path)
    before = content(paths.root)
    with pytest.raises(RunError, match="cannot be deleted"):
        delete_run(paths, FaultyFiles(fail_at=1, kind="rename", error=error))
    after = content(paths.root)
    after.pop("lock", None)
    assert after == before


def test_a_kill_at_any_moment_leaves_the_run_whole_or_gone(tmp_path: Path) -> None:
    counter = FaultyFiles()
    delete_run(crashed_run(tmp_path / "count"), counter)
    assert counter.count > 10
    for at in range(1, counter.count + 1):
        runs = tmp_path / str(at)
        paths = crashed_run(runs)
        before = content(paths.root)
        with pytest.raises(PowerCut):
            delete_run(paths, FaultyFiles(fail_at=at, power_cut=True))
        listed = [info.run_id for info in list_runs(runs)]
        assert listed in ([], [paths.run_id])
        if listed:
            after = content(paths.root)
            after.pop("lock", None)
            assert after == before
        sweep(runs)
        assert all(not name.startswith(DELETED_PREFIX) for name in os.listdir(runs))


def test_a_failing_removal_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    first, second = crashed_run(tmp_path), completed_run(tmp_path)
    delete_run(first, FaultyFiles(fail_at=3, kind="unlink", error=errno.EIO))
    assert not first.root.exists()
    assert any(name.startswith(DELETED_PREFIX) for name in os.listdir(tmp_path))
    delete_run(second)
    assert os.listdir(tmp_path) == []


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        delete_run(RunPaths(tmp_path / "nothing"))
    assert os.listdir(tmp_path) == []
