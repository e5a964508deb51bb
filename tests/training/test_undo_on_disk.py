"""What a jump is undone from, in a file: bit for bit, gone with its process, and a full disk costs only the jump."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpuworkbench.io import Files
from gpuworkbench.memory.disk_copies import DiskCopies
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.checkpoint import Checkpointer
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.faulty_files import FaultyFiles
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, on_reaching

STEPS = 26
SETS: dict[str, Any] = {
    "hybrid.enabled": True,
    "hybrid.predictor": "outer_nesterov",
    "hybrid.warmup_steps": 3,
    "hybrid.full_steps": 5,
    "hybrid.correct_steps": 2,
    "hybrid.probe_sequences": 3,
    "train.max_steps": STEPS,
    "checkpoint.interval_steps": 1,
    "eval.interval_steps": 13,
}
ON_DISK = {**SETS, "hybrid.undo_storage": "disk"}
FIRST_JUMP, SECOND_JUMP = 8, 15  # after warm-up and a full phase; after a correct and a full phase more
CONTROL: dict[str, Any] = {"hybrid.predictor": "null"}  # jumps of no length: all of them stand


class FullDisk(Files):
    """Every write fails."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def state() -> dict[str, Tensor]:
    """Every type and rank that weights and optimizer state come in, of sizes that no alignment divides."""
    torch.manual_seed(3)
    return {
        "fp32": torch.randn(7, 13),
        "bf16": torch.randn(5, 3).bfloat16(),
        "codes": torch.randint(-128, 128, (33,), dtype=torch.int8),
        "step": torch.tensor(41.0),
        "odd": torch.tensor([float("nan"), -0.0, float("inf")]),
        "transposed": torch.randn(4, 6).t(),
    }


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def as_bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_copies_are_bit_for_bit_and_their_file_has_no_name(tmp_path: Path) -> None:
    live = state()
    expected = {name: as_bytes(tensor) for name, tensor in live.items()}
    copies = DiskCopies(tmp_path / "undo").copy(live)
    assert names(tmp_path) == []
    for tensor in live.values():
        tensor.zero_()
    assert {name: as_bytes(copy) for name, copy in copies.items()} == expected
    assert all(copies[name].shape == tensor.shape for name, tensor in live.items())
    assert all(copies[name].dtype == tensor.dtype for name, tensor in live.items())


def test_the_file_is_gone_from_the_disk_with_the_last_copy(tmp_path: Path) -> None:
    def held() -> list[str]:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
        return [line for line in mapped.splitlines() if str(tmp_path) in line]

    copies = DiskCopies(tmp_path / "undo").copy({"a": torch.ones(1 << 20)})
    assert len(held()) == 1
    assert held()[0].endswith("(deleted)")
    del copies
    assert held() == []


def test_nothing_to_copy_takes_no_file(tmp_path: Path) -> None:
    assert DiskCopies(tmp_path / "undo", FullDisk()).copy({}) == {}


def test_each_operation_can_fail_and_leaves_no_file(tmp_path: Path) -> None:
    counting = FaultyFiles()
    DiskCopies(tmp_path / "undo", counting).copy(state())
    kinds = [operation.kind for operation in counting.operations]
    assert kinds[:2] == ["open_write", "unlink"]
    assert kinds.count("write") >= len(state())
    for fail_at, kind in enumerate(kinds, start=1):
        with pytest.raises(OSError, match="No space left"):
            DiskCopies(tmp_path / "undo", FaultyFiles(fail_at=fail_at)).copy(state())
        left = [(tmp_path / name).stat().st_size for name in names(tmp_path)]
        assert left == ([0] if kind == "unlink" else [])  # a name that cannot be removed has no bytes
        for name in names(tmp_path):
            (tmp_path / name).unlink()


def test_no_byte_is_written_while_the_file_has_a_name(tmp_path: Path) -> None:
    """A kill at any write then leaves nothing: the undo copies of a large model are many gigabytes."""
    seen = []

    class Watching(Files):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            seen.append(names(tmp_path))
            return super().write(fd, data)

    DiskCopies(tmp_path / "undo", Watching()).copy(state())
    assert len(seen) >= len(state())
    assert seen == [[]] * len(seen)


def test_it_is_the_run_whose_copies_are_in_memory_killed_or_not(local: LocalRuns) -> None:
    in_memory = local.trained("memory-5", SETS)
    on_disk = local.trained("disk-5", ON_DISK)
    assert any(event["accepted"] for event in local.events(in_memory, "prediction"))
    assert final_tensors(on_disk, STEPS) == final_tensors(in_memory, STEPS)
    cut = local.create("cut-5", ON_DISK)
    for step in (FIRST_JUMP, FIRST_JUMP + 1, SECOND_JUMP + 1):
        killed(local.open(cut), step)
    reopened = local.open(cut)
    assert reopened.parts["hybrid_undo"].state().values["step"] == SECOND_JUMP  # it stands, and is not judged yet
    killed(reopened, SECOND_JUMP + 1)
    assert local.attempt(cut) == 0
    assert final_tensors(cut, STEPS) == final_tensors(in_memory, STEPS)
    assert not any("undo" in name for name in names(cut.root))


def test_a_rolled_back_jump_is_the_same_from_disk(local: LocalRuns) -> None:
    """A threshold that every batch exceeds: jumps that stand are rolled back by the true steps after them."""
    harsh = {"optimizer.lr": 1e-5, "hybrid.divergence_threshold": 0.01, "hybrid.moment_damping": 0.9}
    in_memory = local.trained("memory-6", {**SETS, **harsh})
    on_disk = local.trained("disk-6", {**ON_DISK, **harsh})
    corrections = local.events(on_disk, "correction", "micro_correction")
    assert any(event["rolled_back"] for event in corrections)
    assert final_tensors(on_disk, STEPS) == final_tensors(in_memory, STEPS)


def with_disk(run: TrainingRun, files: Files) -> None:
    """The run's undo copies go to that disk."""
    undo: Any = run.parts["hybrid_undo"]
    undo.disk.files = files


def test_a_full_disk_costs_the_jumps_and_nothing_else(local: LocalRuns) -> None:
    """Without a jump every step is a plain one: the weights are those of a run that never leaves its warm-up."""
    plain = local.trained("plain-7", {**SETS, "hybrid.warmup_steps": STEPS})
    paths = local.create("full-7", ON_DISK)
    run = local.open(paths)
    with_disk(run, FullDisk())
    assert finish(run).exit_code == 0
    run.events.close()
    assert local.events(paths, "prediction") == []
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "jump_not_made"]
    assert [event["step"] for event in warnings] == [FIRST_JUMP]  # told once, however often it is tried
    assert "No space left on device" in warnings[0]["message"]
    weights = {path: final_tensors(path, STEPS)["model.safetensors"] for path in (plain, paths)}
    assert weights[paths] == weights[plain]
    assert final_tensors(paths, STEPS)["optimizer.safetensors"] == final_tensors(plain, STEPS)["optimizer.safetensors"]


def test_jumps_are_made_again_once_there_is_room(local: LocalRuns) -> None:
    paths = local.create("full-8", {**ON_DISK, **CONTROL})
    run = local.open(paths)
    with_disk(run, FaultyFiles(fail_at=1, kind="write"))
    assert finish(run).exit_code == 0
    run.events.close()
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "jump_not_made"]
    # the refused prediction is followed by a full phase
    assert [event["step"] for event in warnings] == [FIRST_JUMP, FIRST_JUMP + 5]
    assert "1 could not be made" in warnings[1]["message"]
    jumps = [event["step"] for event in local.events(paths, "prediction")]
    assert jumps == [FIRST_JUMP + 5, FIRST_JUMP + 12]


def test_a_resume_within_a_jump_needs_the_room_or_another_place(
    local: LocalRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = local.trained("whole-9", SETS)
    cut = local.create("cut-9", ON_DISK)
    killed(local.open(cut), FIRST_JUMP + 2)
    with monkeypatch.context() as patch:
        patch.setattr(DiskCopies, "_written", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
        assert local.attempt(cut) == 4
    assert "hybrid.undo_storage=memory" in local.events(cut, "error")[-1]["hint"]
    local.change(cut, {"hybrid.undo_storage": "memory"})
    assert local.attempt(cut) == 0
    assert final_tensors(cut, STEPS) == final_tensors(whole, STEPS)


def test_a_checkpoint_without_a_copy_is_the_same_checkpoint(local: LocalRuns) -> None:
    """And training waits for it; with the undo copies on disk nothing of the state is in memory twice."""
    behind = local.trained("behind-10", ON_DISK)
    waiting = local.trained("waiting-10", {**ON_DISK, "checkpoint.in_background": False})
    assert final_tensors(waiting, STEPS) == final_tensors(behind, STEPS)
    assert all(event["stall_s"] >= event["duration_s"] for event in local.events(waiting, "checkpoint_saved"))
    assert len(local.events(waiting, "checkpoint_saved")) == STEPS
    killed(local.open(cut := local.create("cut-10", {**ON_DISK, "checkpoint.in_background": False})), FIRST_JUMP + 1)
    assert local.attempt(cut) == 0
    assert final_tensors(cut, STEPS) == final_tensors(behind, STEPS)


def test_a_checkpoint_copies_no_undo_copies(local: LocalRuns) -> None:
    """Nobody writes to them, so the host needs no room for them twice."""
    seen: dict[str, Any] = {}
    run = local.open(local.create("seen-11", {**SETS, **CONTROL}))
    checkpointer: Checkpointer = run.checkpointer

    def look() -> None:
        assert checkpointer._buffers is not None
        seen["undo"] = run.parts["hybrid_undo"].state().tensors
        seen["buffers"] = {part for part, _ in checkpointer._buffers._buffers}

    on_reaching(run, FIRST_JUMP + 1, look)
    killed(run, FIRST_JUMP + 2)
    assert seen["undo"]
    assert "model" in seen["buffers"]
    assert "hybrid_undo" not in seen["buffers"]
