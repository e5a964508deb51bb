"""Every operation of a checkpoint fails once and the power goes at every one: training and the earlier state stay."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpuworkbench.io import REAL_FILES, Files
from gpuworkbench.parts import Part
from gpuworkbench.runs.manifest import list_checkpoints, verify_checkpoint
from gpuworkbench.training import checkpoint as checkpoint_module
from tests.fixtures.faulty_files import FaultyFiles, PowerCut
from tests.fixtures.small_state import SmallState, inline, reference_content

__all__ = ["inline"]
ERRORS = [errno.ENOSPC, errno.EIO, errno.EFBIG]
LOSSES = [(False, False), (True, False), (False, True), (True, True)]


def saved_twice(root: Path) -> SmallState:
    """A state whose steps 1 and 2 are saved, on a disk without faults so far."""
    state = SmallState(root)
    state.train_and_save(1, 2)
    return state


def operations_of_third_save(root: Path) -> list[str]:
    """The kinds of operations that saving step 3 makes; step 1 is retired by it."""
    state = saved_twice(root)
    files = state.checkpointer.files = FaultyFiles()
    state.train_and_save(3)
    state.close()
    return [operation.kind for operation in files.operations]


def visible(state: SmallState) -> list[str]:
    return sorted(os.listdir(state.paths.checkpoints))


def steps(state: SmallState) -> list[int]:
    return [reference.step for reference in list_checkpoints(state.paths)]


def assert_loads(root: Path, step: int, expected: dict[str, object]) -> None:
    """A fresh process finds the state of `step`."""
    fresh = SmallState(root)
    assert fresh.checkpointer.restore().step == step
    assert fresh.content() == expected
    fresh.close()


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_each_operation_of_a_save_fails_once(tmp_path: Path, inline: None, error: int) -> None:
    kinds = operations_of_third_save(tmp_path / "count")
    n_commit = len(kinds) - kinds[::-1].index("fsync_directory")  # after that fsync the checkpoint is acknowledged
    assert kinds.count("fsync") == 4  # model, optimizer, state, manifest
    assert n_commit > 20
    assert len(kinds) > n_commit + 5  # then step 1 goes
    expected = {step: reference_content(tmp_path, step) for step in (2, 3, 4)}
    for fail_at in range(1, len(kinds) + 1):
        root = tmp_path / f"{fail_at}"
        state = saved_twice(root)
        files = state.checkpointer.files = FaultyFiles(fail_at=fail_at, error=error)
        state.train_and_save(3)
        assert files.failed is not None
        assert state.content() == expected[3], "a failed save must not touch the training state"
        warnings = state.logged("warning")
        if fail_at <= n_commit:
            assert [event["code"] for event in warnings] == ["checkpoint_failed"]
            assert "unsaved since step 2" in warnings[0]["message"]
            assert os.strerror(error) in warnings[0]["message"]
            assert state.checkpointer.last_saved_step == 2
            assert {1, 2} <= set(steps(state)), "nothing older goes before the new one is acknowledged"
        else:
            assert warnings == []
            assert state.checkpointer.last_saved_step == 3
        for reference in list_checkpoints(state.paths):
            assert verify_checkpoint(reference.path).step == reference.step
        newest = steps(state)[0]
        assert newest == (2 if fail_at < n_commit else 3)
        assert_loads(root, newest, expected[newest])

        state.train_and_save(4)
        assert [event["step"] for event in state.logged("checkpoint_saved")][-1] == 4
        survivors = [4, 3] if fail_at > n_commit else [4, 2]  # an unacknowledged 3 does not count
        assert visible(state) == sorted(f"step-{step:08d}" for step in survivors)
        assert_loads(root, 4, expected[4])
        state.close()


def test_the_same_step_can_be_saved_again_wherever_it_failed(tmp_path: Path, inline: None) -> None:
    """A run's last save is tried twice; the second try must not stumble over what the first left."""
    expected = reference_content(tmp_path, 3)
    n_operations = len(operations_of_third_save(tmp_path / "count"))
    for fail_at in range(1, n_operations + 1):
        state = saved_twice(tmp_path / f"{fail_at}")
        state.checkpointer.files = FaultyFiles(fail_at=fail_at)
        state.train(3)
        state.checkpointer.save(3, best_step=None, wait=True)
        assert state.checkpointer.last_saved_step == 3
        assert_loads(state.paths.root, 3, expected)
        assert [event["step"] for event in state.logged("checkpoint_saved")] == [1, 2, 3]
        state.close()


@pytest.mark.parametrize(("contents", "names"), LOSSES)
def test_the_power_goes_at_each_operation_of_a_save(tmp_path: Path, inline: None, contents: bool, names: bool) -> None:
    n_operations = len(operations_of_third_save(tmp_path / "count"))
    expected = {step: reference_content(tmp_path, step) for step in (2, 3)}
    n_acknowledged = 0
    for fail_at in range(1, n_operations + 1):
        root = tmp_path / f"{fail_at}"
        state = saved_twice(root)
        files = state.checkpointer.files = FaultyFiles(fail_at=fail_at, power_cut=True)
        state.train(3)
        with pytest.raises(PowerCut):
            state.save(3)
        acknowledged = [event["step"] for event in state.logged("checkpoint_saved")][-1]
        state.close()
        files.lose(state.paths.checkpoints, contents=contents, names=names)
        fresh = SmallState(root)
        found = fresh.checkpointer.restore().step
        assert found in (2, 3)
        assert found >= acknowledged
        assert fresh.content() == expected[found]
        fresh.close()
        n_acknowledged += acknowledged == 3
    assert 0 < n_acknowledged < n_operations


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_short_writes_give_the_same_bytes(tmp_path: Path, inline: None, chunk: int) -> None:
    contents = []
    for name, files in (("whole", FaultyFiles()), ("short", FaultyFiles(short_writes=chunk))):
        state = SmallState(tmp_path / name, files)
        state.train_and_save(1)
        contents.append({path.name: path.read_bytes() for path in state.paths.checkpoint(1).iterdir()})
        state.close()
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}


class FsyncLog(FaultyFiles):
    """Notes what becomes of a file whose fsync failed, by the file's name at the time."""

    def __init__(self, fail_at: int) -> None:
        super().__init__(fail_at=fail_at, kind="fsync", error=errno.EIO)
        self.suspect: set[str] = set()

    def open_write(self, path: Path) -> int:
        self.suspect.discard(str(path))  # emptied: what the kernel dropped is written anew
        return super().open_write(path)

    def fsync(self, fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        assert name not in self.suspect, "a failed fsync was tried again on the same file"
        try:
            super().fsync(fd)
        except OSError:
            self.suspect.add(name)
            raise

    def rename(self, source: Path, target: Path) -> None:
        assert not any(name.startswith(str(source)) for name in self.suspect), "committed without a good fsync"
        super().rename(source, target)


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
def test_a_failed_fsync_is_never_tried_again_on_that_file(tmp_path: Path, inline: None, fail_at: int) -> None:
    state = saved_twice(tmp_path)
    files = state.checkpointer.files = FsyncLog(fail_at)
    state.train(3)
    state.checkpointer.save(3, best_step=None, wait=True)
    assert files.failed is not None
    assert state.checkpointer.last_saved_step == 3
    state.close()


@pytest.mark.parametrize("error", [MemoryError("no room"), TypeError("a bug"), RuntimeError("can't allocate memory")])
def test_whatever_a_save_raises_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    state = saved_twice(tmp_path)
    state.train(3)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_checkpoint_files", fail)
        state.save(3)
    (warning,) = state.logged("warning")
    assert type(error).__name__ in warning["message"]
    state.save(3)
    assert state.checkpointer.last_saved_step == 3
    state.close()


def test_a_disk_that_stays_full_is_told_once_and_so_is_its_end(tmp_path: Path, inline: None) -> None:
    """Steps 3 to 5 find no room, 6 a broken disk; 7 works, and 8 after it has nothing to tell."""
    state = saved_twice(tmp_path)

    def told_at(step: int, files: Files = REAL_FILES) -> list[dict[str, Any]]:
        before = len(state.logged("warning"))
        state.checkpointer.files = files
        state.train_and_save(step)
        return state.logged("warning")[before:]

    full = [told_at(step, FaultyFiles(fail_at=1, kind="write")) for step in (3, 4, 5)]
    assert [len(each) for each in full] == [1, 0, 0]
    (broken,) = told_at(6, FaultyFiles(fail_at=1, kind="fsync", error=errno.EIO))
    assert "(Input/output error), as 3 before; unsaved since step 2" in broken["message"]
    (works,) = told_at(7)
    assert works["code"] == "checkpoint_works_again"
    assert works["message"] == "checkpoints are written again, after 4 that failed"
    assert told_at(8) == []
    state.close()


def test_a_checkpoint_that_somebody_waits_for_tells_each_failure(tmp_path: Path, inline: None) -> None:
    state = saved_twice(tmp_path)
    for step in (3, 4):
        state.train(step)
        state.checkpointer.files = FaultyFiles(fail_at=1, kind="write")
        state.checkpointer.save(step, best_step=None, is_asked_for=True)
    assert [(event["code"], event["step"]) for event in state.logged("warning")] == [
        ("checkpoint_failed", 3),
        ("checkpoint_failed", 4),
    ]
    state.close()


def test_no_room_for_a_snapshot_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = saved_twice(tmp_path)
    state.train(3)

    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "take_snapshot", fail)
        state.checkpointer.save(3, best_step=None, wait=True)
    assert state.checkpointer.last_saved_step == 2
    assert {event["code"] for event in state.logged("warning")} == {"checkpoint_failed"}
    state.close()


def test_a_machine_without_room_for_a_thread_still_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(checkpoint_module, "threading", SimpleNamespace(Thread=NoThread))
    state = saved_twice(tmp_path)
    assert steps(state) == [2, 1]
    state.close()


class Gate(Files):
    """A disk that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def write(self, fd: int, data: bytes | memoryview) -> int:
        assert self.is_open.wait(30)
        return super().write(fd, data)


class Growing:
    """A part whose values are changed in place."""

    version = 1

    def __init__(self) -> None:
        self.history = [1]

    def state(self) -> Part:
        return Part(values={"history": self.history})

    def load(self, part: Part) -> None:
        self.history = part.values["history"]


def test_values_are_copied_too(tmp_path: Path) -> None:
    gate = Gate()
    state = SmallState(tmp_path, gate)
    state.parts["growing"] = growing = Growing()
    state.checkpointer.save(1, best_step=None)
    growing.history.append(2)
    gate.is_open.set()
    state.checkpointer.wait()
    state.checkpointer.restore()
    assert growing.history == [1]
    state.close()


def test_training_goes_on_while_a_snapshot_is_written(tmp_path: Path) -> None:
    gate = Gate()
    state = SmallState(tmp_path / "run", gate)
    state.train(1)
    state.checkpointer.save(1, best_step=None)
    state.train(2)
    state.train(3)
    assert steps(state) == []
    gate.is_open.set()
    state.checkpointer.wait()
    assert_loads(state.paths.root, 1, reference_content(tmp_path, 1))
    state.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path, value: float) -> None:
    state = saved_twice(tmp_path / "run")
    state.train(3)
    with torch.no_grad():
        state.model.weight[1, 2] = value
    state.save(3, best_step=3)
    assert steps(state) == [2, 1]
    assert "NaN or Inf" in state.logged("warning")[0]["message"]
    assert_loads(state.paths.root, 2, reference_content(tmp_path, 2))
    state.close()


class Recorder(Files):
    """The order of what is renamed and removed, and of what is acknowledged."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        if source.name.startswith("step-"):
            self.order.append(f"retire {int(source.name[5:])}")
        elif target.name.startswith("step-"):
            self.order.append(f"commit {int(target.name[5:])}")

    def unlink(self, path: Path) -> None:
        self.order.append(f"unlink in {path.parent.name.split('-')[0]}")
        super().unlink(path)


def record_acknowledgements(state: SmallState, order: list[str]) -> None:
    """Put "acknowledge N" into `order` when the event of step N is durable."""
    sync: Callable[[], bool] = state.events.sync

    def noted() -> bool:
        done = sync()
        order.append(f"acknowledge {state.logged('checkpoint_saved')[-1]['step']}")
        return done

    state.events.sync = noted  # type: ignore[method-assign]


def test_retention_keeps_the_last_and_the_best_and_removes_only_after_acknowledgement(tmp_path: Path) -> None:
    recorder = Recorder()
    state = SmallState(tmp_path, recorder, keep_last=2)
    record_acknowledgements(state, recorder.order)
    kept = {}
    for step, best_step in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5), (7, 5), (8, 5)):
        state.train(step)
        state.save(step, best_step)
        kept[step] = steps(state)
    assert kept == {
        1: [1],
        2: [2, 1],
        3: [3, 2],
        4: [4, 3, 2],
        5: [5, 4],
        6: [6, 5],
        7: [7, 6, 5],
        8: [8, 7, 5],
    }
    for position, entry in enumerate(recorder.order):
        verb, _, what = entry.partition(" ")
        assert not entry.startswith("unlink in step"), "a checkpoint is hidden before it is taken apart"
        if verb == "retire":
            newest = max(int(e.split()[1]) for e in recorder.order[:position] if e.startswith("commit"))
            assert f"acknowledge {newest}" in recorder.order[:position]
            assert int(what) < newest
    state.close()


def test_retention_without_the_best(tmp_path: Path) -> None:
    state = SmallState(tmp_path, keep_last=3, keep_best=False)
    for step in range(1, 7):
        state.train(step)
        state.save(step, best_step=1)
    assert steps(state) == [6, 5, 4]
    state.close()


def test_a_planted_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    """A run directory may come from anywhere: what its hidden entries point to must stay."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    state = SmallState(tmp_path / "run")
    for name in (".tmp-1-step-00000001", ".damaged-1-step-00000001", ".retired-1-step-00000001"):
        (state.paths.checkpoints / name).symlink_to(precious)
    state.train_and_save(1)
    assert (precious / "thesis.tex").read_text() == "years of work"
    assert visible(state) == ["step-00000001"]
    state.close()
