"""Every operation of a durable write fails once, and the power goes at every one: old content or new, never a part."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gpuworkbench.errors import CheckpointError, RunError
from gpuworkbench.io import (
    Files,
    append_line,
    atomic_write_bytes,
    commit_directory,
    discard_directory,
    discard_leftovers,
    make_directories,
    write_durable,
)
from gpuworkbench.runs.control import poll_commands, send_command
from gpuworkbench.runs.create import create_run, discard_run
from gpuworkbench.runs.heartbeat import HeartbeatWriter, read_heartbeat
from gpuworkbench.runs.manifest import list_checkpoints, verify_checkpoint, write_manifest
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.store import list_runs
from tests.fixtures.faulty_files import FaultyFiles, PowerCut

OLD, NEW = b"old content", b"the new content, which is longer than the old one"
ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG)
LOSSES = [(contents, names) for contents in (False, True) for names in (False, True)]


def count_operations(action: Callable[[Files], object]) -> int:
    files = FaultyFiles()
    action(files)
    return files.count


def open_descriptors() -> int:
    gc.collect()  # what earlier tests left to the collector closes now, not in between
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("old", [OLD, None])
def test_atomic_write_fails_at_each_operation(tmp_path: Path, old: bytes | None, error: int) -> None:
    path = tmp_path / "file"
    total = count_operations(lambda files: atomic_write_bytes(tmp_path / "other", NEW, files))
    assert total == 6  # open, write, fsync, close, rename, fsync of the directory
    (tmp_path / "other").unlink()
    for fail_at in range(1, total + 1):
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        files = FaultyFiles(fail_at=fail_at, error=error)
        descriptors = open_descriptors()
        with pytest.raises(OSError, match=os.strerror(error)):
            atomic_write_bytes(path, NEW, files)
        assert open_descriptors() == descriptors
        assert files.failed is not None
        expected = NEW if files.failed.kind == "fsync_directory" else old
        assert (path.read_bytes() if path.exists() else None) == expected
        assert os.listdir(tmp_path) == (["file"] if expected is not None else [])


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize(("contents", "names"), LOSSES)
@pytest.mark.parametrize("old", [OLD, None])
def test_atomic_write_survives_a_power_cut_at_each_operation(
    tmp_path: Path, old: bytes | None, contents: bool, names: bool, torn: bool
) -> None:
    for fail_at in range(1, 8):
        root = tmp_path / str(fail_at)
        root.mkdir()
        path = root / "file"
        if old is not None:
            path.write_bytes(old)
        files = FaultyFiles(fail_at=fail_at, power_cut=True, torn=torn)
        acknowledged = True
        try:
            atomic_write_bytes(path, NEW, files)
        except PowerCut:
            acknowledged = False
        files.lose(root, contents=contents, names=names)
        found = path.read_bytes() if path.exists() else None
        assert found == NEW if acknowledged else found in (old, NEW)
        assert acknowledged == (fail_at == 7)


def test_the_twin_catches_a_write_without_fsync(tmp_path: Path) -> None:
    """The sweep can fail: rename without fsync leaves an empty file behind on a disk that lost the content."""
    files = FaultyFiles()
    atomic_write_bytes(tmp_path / "file", NEW, files, durable=False)
    files.lose(tmp_path, contents=True, names=False)
    assert (tmp_path / "file").read_bytes() == b""


def test_the_twin_catches_a_commit_without_directory_fsync(tmp_path: Path) -> None:
    files = FaultyFiles()
    write_durable(tmp_path / "a", NEW, files)
    files.rename(tmp_path / "a", tmp_path / "b")
    files.lose(tmp_path, contents=True, names=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_short_writes_are_continued(tmp_path: Path, chunk: int) -> None:
    files = FaultyFiles(short_writes=chunk)
    atomic_write_bytes(tmp_path / "file", NEW, files)
    assert (tmp_path / "file").read_bytes() == NEW
    assert sum(operation.kind == "write" for operation in files.operations) == -(-len(NEW) // chunk)


def test_append_line_is_one_write(tmp_path: Path) -> None:
    files = FaultyFiles()
    fd = files.open_append(tmp_path / "log")
    append_line(files, fd, b"one\n")
    append_line(files, fd, b"two\n")
    files.close(fd)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert [operation.kind for operation in files.operations] == ["open_append", "write", "write", "close"]


def save_checkpoint(run: RunPaths, files: Files, step: int = 5) -> Path:
    """A checkpoint as the trainer commits one: files, manifest, directory."""
    temporary = run.checkpoints / f".tmp-1-{step}"
    try:
        files.mkdir(temporary)
        header = msgspec.json.encode({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        write_durable(temporary / "model.safetensors", len(header).to_bytes(8, "little") + header + b"abcd", files)
        write_durable(temporary / "state.json", b'{"step":5}', files)
        write_manifest(temporary, step, files)
        commit_directory(temporary, run.checkpoint(step), files)
    except OSError:
        discard_directory(temporary, files)
        raise
    return run.checkpoint(step)


def empty_run(root: Path) -> RunPaths:
    run = RunPaths(root)
    run.checkpoints.mkdir(parents=True)
    return run


@pytest.mark.parametrize("error", ERRORS)
def test_checkpoint_commit_fails_at_each_operation(tmp_path: Path, error: int) -> None:
    earlier = empty_run(tmp_path / "count")
    total = count_operations(lambda files: save_checkpoint(earlier, files))
    assert total >= 15
    for fail_at in range(1, total + 1):
        run = empty_run(tmp_path / str(fail_at))
        save_checkpoint(run, Files(), step=3)
        files = FaultyFiles(fail_at=fail_at, error=error)
        descriptors = open_descriptors()
        with pytest.raises(OSError, match=os.strerror(error)):
            save_checkpoint(run, files)
        assert open_descriptors() == descriptors
        steps = [ref.step for ref in list_checkpoints(run)]
        assert steps == ([5, 3] if fail_at == total else [3])  # only the last operation comes after the rename
        assert all(verify_checkpoint(run.checkpoint(step)).step == step for step in steps)
        assert sorted(os.listdir(run.checkpoints)) == sorted(f"step-{step:08d}" for step in steps)


@pytest.mark.parametrize(("contents", "names"), LOSSES)
def test_checkpoint_commit_survives_a_power_cut_at_each_operation(tmp_path: Path, contents: bool, names: bool) -> None:
    total = count_operations(lambda files: save_checkpoint(empty_run(tmp_path / "count"), files))
    for fail_at in range(1, total + 2):
        run = empty_run(tmp_path / str(fail_at))
        save_checkpoint(run, Files(), step=3)
        files = FaultyFiles(fail_at=fail_at, power_cut=True)
        acknowledged = True
        try:
            save_checkpoint(run, files)
        except PowerCut:
            acknowledged = False
        files.lose(run.root, contents=contents, names=names)
        steps = [ref.step for ref in list_checkpoints(run)]
        assert steps == [5, 3] if acknowledged else steps in ([3], [5, 3])
        assert all(verify_checkpoint(run.checkpoint(step)).step == step for step in steps)
        discard_leftovers(run.checkpoints)
        assert sorted(os.listdir(run.checkpoints)) == sorted(f"step-{step:08d}" for step in steps)
        assert acknowledged == (fail_at == total + 1)


def test_a_commit_without_fsync_would_be_found(tmp_path: Path) -> None:
    run = empty_run(tmp_path / "run")
    files = FaultyFiles()
    save_checkpoint(run, files)
    (run.checkpoint(5) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        verify_checkpoint(run.checkpoint(5))


def test_create_run_fails_at_each_operation(tmp_path: Path) -> None:
    total = count_operations(lambda files: create_run(tmp_path / "count", "run", b"p", b"r", files))
    for fail_at in range(1, total + 1):
        runs = tmp_path / str(fail_at)
        files = FaultyFiles(fail_at=fail_at)
        with pytest.raises(RunError) as caught:
            create_run(runs, "run", b"p", b"r", files)
        assert "\n" not in caught.value.line()
        assert not runs.exists() or os.listdir(runs) == []


@pytest.mark.parametrize(("contents", "names"), LOSSES)
def test_create_run_survives_a_power_cut(tmp_path: Path, contents: bool, names: bool) -> None:
    total = count_operations(lambda files: create_run(tmp_path / "count", "run", b"p", b"r", files))
    for fail_at in range(1, total + 2):
        base = tmp_path / str(fail_at)
        base.mkdir()
        files = FaultyFiles(fail_at=fail_at, power_cut=True)
        acknowledged = True
        try:
            create_run(base / "deep" / "runs", "run", b"preset", b"config = 1", files)
        except PowerCut:
            acknowledged = False
        files.lose(base, contents=contents, names=names)
        found = list_runs(base / "deep" / "runs")
        if acknowledged:
            assert [info.run_id for info in found] == ["run"]
        for info in found:
            paths = RunPaths(Path(info.path))
            assert paths.run_toml.read_bytes() == b"config = 1"
            assert paths.preset_toml.read_bytes() == b"preset"


def test_a_failed_command_is_not_sent(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", b"", b"")
    for fail_at in range(1, 6):
        with pytest.raises(RunError, match="cannot be sent stop"):
            send_command(run, "stop", files=FaultyFiles(fail_at=fail_at))
        assert os.listdir(run.control) == []
    with pytest.raises(RunError):  # the rename happened: it may be obeyed, and the person is told that it is not sure
        send_command(run, "stop", files=FaultyFiles(fail_at=6))
    assert len(poll_commands(run)) == 1


def test_a_full_disk_does_not_end_the_heartbeat(tmp_path: Path) -> None:
    files = FaultyFiles(fail_at=2)
    writer = HeartbeatWriter(tmp_path / "heartbeat.json", files, interval_s=0.01)
    writer.start()
    try:
        writer.progress(7)
        for _ in range(500):
            beat = read_heartbeat(tmp_path / "heartbeat.json")
            if beat is not None and beat.last_step == 7:
                break
            writer._stop.wait(0.01)
        assert beat is not None
        assert beat.last_step == 7
        assert files.failed is not None
    finally:
        writer.stop()


def test_make_directories_makes_every_name_durable(tmp_path: Path) -> None:
    files = FaultyFiles()
    make_directories(tmp_path / "a" / "b" / "c", files)
    files.lose(tmp_path, contents=True, names=True)
    assert (tmp_path / "a" / "b" / "c").is_dir()
    make_directories(tmp_path / "a" / "b", files)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        make_directories(tmp_path / "file" / "x", files)


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-a").write_bytes(b"x")
    (tmp_path / ".tmp-1-d" / "e").mkdir(parents=True)
    (tmp_path / ".tmp-1-l").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    assert discard_leftovers(tmp_path) == 3
    assert os.listdir(tmp_path) == ["kept"]
    assert discard_leftovers(tmp_path / "missing") == 0


def test_discarding_a_run_leaves_nothing(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", b"", b"")
    discard_run(run)
    assert os.listdir(tmp_path) == []
    discard_run(run)
