"""A damaged checkpoint is found out, said, and the one before it used; nothing intact is ever lost over it."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from torch import nn

from gpuworkbench.errors import CheckpointError, ForeignCheckpointError
from gpuworkbench.io import Files
from gpuworkbench.launch.spawn import torch_command, trainer_environment
from gpuworkbench.runs.manifest import write_manifest
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.state import ModelState
from tests.fixtures.local_run import LocalRuns, final_tensors
from tests.fixtures.small_state import SmallState, reference_content

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 1, 2 and 3."""
    root = tmp_path_factory.mktemp("pristine") / "run"
    state = SmallState(root, keep_last=10)
    state.train_and_save(1, 2, 3)
    state.close()
    return root


@pytest.fixture(scope="module")
def content_2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return reference_content(tmp_path_factory.mktemp("reference"), 2)


def assert_falls_back(pristine: Path, copy: Path, damage: Damage, content_2: dict[str, object], what: str) -> None:
    """`damage(newest checkpoint)`: the one before is loaded, the damage is said, and is gone after the next save."""
    shutil.copytree(pristine, copy, symlinks=True)
    paths = RunPaths(copy)
    damage(paths.checkpoint(3))
    state = SmallState(copy, keep_last=10)
    restored = state.checkpointer.restore()
    assert restored.step == 2, what
    assert state.content() == content_2, what
    assert len(restored.damaged) == 1, what
    assert "step-00000003" in restored.damaged[0], what
    assert "\n" not in restored.damaged[0]
    state.train_and_save(3)
    state.close()
    assert sorted(os.listdir(paths.checkpoints)) == [f"step-{step:08d}" for step in (1, 2, 3)], what
    fresh = SmallState(copy)
    assert fresh.checkpointer.restore() == (3, ())
    fresh.close()
    shutil.rmtree(copy)


def flip(path: Path, position: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(tmp_path: Path, pristine: Path, content_2: dict[str, object], name: str) -> None:
    size = (pristine / "checkpoints" / "step-00000003" / name).stat().st_size
    draw = random.Random(name)
    positions = {0, 7, 8, 9, size // 2, size - 1, *(draw.randrange(size) for _ in range(20))}
    for position in sorted(positions):
        mask = 1 << draw.randrange(8)

        def damage(directory: Path, position: int = position, mask: int = mask) -> None:
            flip(directory / name, position, mask)

        assert_falls_back(pristine, tmp_path / f"{position}", damage, content_2, f"{name} byte {position} ^ {mask}")


@pytest.mark.parametrize("name", FILES)
def test_truncated_files(tmp_path: Path, pristine: Path, content_2: dict[str, object], name: str) -> None:
    size = (pristine / "checkpoints" / "step-00000003" / name).stat().st_size
    for length in (0, 1, 7, 8, 9, size // 2, size - 1):

        def damage(directory: Path, length: int = length) -> None:
            os.truncate(directory / name, length)

        assert_falls_back(pristine, tmp_path / f"{length}", damage, content_2, f"{name} cut to {length}")


def swap(directory: Path) -> None:
    first, second = directory / "model.safetensors", directory / "optimizer.safetensors"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def sibling(directory: Path) -> Path:
    return directory.with_name("step-00000002")


def replace_by_link(directory: Path, name: str) -> None:
    target = directory.parent.parent / f"elsewhere-{name}"
    os.rename(directory / name, target)
    (directory / name).symlink_to(target)


def move_and_link(directory: Path) -> None:
    target = directory.parent.parent / "elsewhere"
    os.rename(directory, target)
    directory.symlink_to(target)


def replace_by_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("a file")


DAMAGES: dict[str, Damage] = {
    **{f"without {name}": lambda directory, name=name: os.unlink(directory / name) for name in FILES},
    **{f"{name} is a link": lambda directory, name=name: replace_by_link(directory, name) for name in FILES},
    **{
        f"{name} of another step": lambda directory, name=name: shutil.copy(sibling(directory) / name, directory)
        for name in FILES
    },
    "model and optimizer swapped": swap,
    "a FIFO for a file": lambda d: (os.unlink(d / "state.json"), os.mkfifo(d / "state.json")),
    "a directory for a file": lambda d: (os.unlink(d / "state.json"), os.mkdir(d / "state.json")),
    "everything of another step": lambda d: [shutil.copy(sibling(d) / name, d) for name in FILES],
    "a link for the whole": move_and_link,
    "empty": lambda d: [os.unlink(d / name) for name in FILES],
    "grown by a byte": lambda d: (d / "model.safetensors").open("ab").write(b"\0"),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_other_damage(tmp_path: Path, pristine: Path, content_2: dict[str, object], what: str) -> None:
    assert_falls_back(pristine, tmp_path / "run", DAMAGES[what], content_2, what)


def test_a_file_named_like_a_checkpoint(tmp_path: Path, pristine: Path) -> None:
    shutil.copytree(pristine, tmp_path / "run")
    replace_by_file(RunPaths(tmp_path / "run").checkpoint(3))
    state = SmallState(tmp_path / "run")
    assert state.checkpointer.restore().step == 2
    state.train_and_save(3)
    assert state.checkpointer.last_saved_step == 3
    state.close()


def test_files_that_the_manifest_does_not_name_are_left_alone(tmp_path: Path, pristine: Path) -> None:
    shutil.copytree(pristine, tmp_path / "run")
    (RunPaths(tmp_path / "run").checkpoint(3) / "notes.pkl").write_bytes(b"cos\nsystem\n")
    state = SmallState(tmp_path / "run")
    assert state.checkpointer.restore() == (3, ())
    state.close()


def test_nothing_is_touched_when_no_checkpoint_is_intact(tmp_path: Path, pristine: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(pristine, root)
    for step in (1, 2, 3):
        flip(RunPaths(root).checkpoint(step) / "model.safetensors", -1, 1)
    before = sorted(os.listdir(root / "checkpoints"))
    state = SmallState(root)
    with pytest.raises(CheckpointError, match=r"no intact checkpoint is left: step-00000003/model\.safetensors"):
        state.checkpointer.restore()
    assert sorted(os.listdir(root / "checkpoints")) == before
    state.close()


class OtherModel(SmallState):
    """The same run in a program whose model has another shape."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.parts["model"] = ModelState(nn.Linear(4, 2))


class OtherVersion(SmallState):
    """The same run in a program whose optimizer state means something else."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.parts["optimizer"].version = 2


class MorePart(SmallState):
    """The same run in a program that keeps more."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.parts["ema"] = ModelState(nn.Linear(1, 1))


@pytest.mark.parametrize("program", [OtherModel, OtherVersion, MorePart])
def test_an_intact_checkpoint_of_another_program_is_refused_and_kept(
    tmp_path: Path, pristine: Path, program: type[SmallState]
) -> None:
    """Falling back would not help, and putting it aside as damaged would lose it."""
    root = tmp_path / "run"
    shutil.copytree(pristine, root)
    state = program(root)
    with pytest.raises(ForeignCheckpointError, match="step-00000003 is intact but cannot be used here"):
        state.checkpointer.restore()
    state.close()
    fresh = SmallState(root)
    assert fresh.checkpointer.restore() == (3, ())
    fresh.close()


def rewrite(directory: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest agree, as somebody who forges a checkpoint would."""
    (directory / name).write_bytes(data)
    (directory / "manifest.json").unlink()
    write_manifest(directory, 3, Files())


def forged_state(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    state = msgspec.json.decode((directory / "state.json").read_bytes())
    change(state)
    rewrite(directory, "state.json", msgspec.json.encode(state))


_HEADER = (
    b'{"weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,8]},'
    b'"bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
)
OVERLAPPING = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(8)

FORGERIES: dict[str, Damage] = {
    "state.json is a list": lambda d: rewrite(d, "state.json", b"[]"),
    "state.json is nested too deeply": lambda d: rewrite(d, "state.json", b"[" * 100_000),
    "state.json is a pickle": lambda d: rewrite(d, "state.json", b"\x80\x04cos\nsystem\n."),
    "a counter is text": lambda d: forged_state(d, lambda s: s["parts"]["progress"]["values"].update(step="x")),
    "a counter is negative": lambda d: forged_state(d, lambda s: s["parts"]["progress"]["values"].update(step=-1)),
    "a part is missing": lambda d: forged_state(d, lambda s: s["parts"].pop("model")),
    "another step": lambda d: forged_state(d, lambda s: s.update(step=7)),
    "a newer version": lambda d: forged_state(d, lambda s: s.update(version=99)),
    "tensors overlap": lambda d: rewrite(d, "model.safetensors", OVERLAPPING),
    "other tensors": lambda d: rewrite(d, "model.safetensors", (d / "optimizer.safetensors").read_bytes()),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_checkpoint_is_one_line(tmp_path: Path, pristine: Path, what: str) -> None:
    root = tmp_path / "run"
    shutil.copytree(pristine, root)
    FORGERIES[what](RunPaths(root).checkpoint(3))
    state = SmallState(root)
    with pytest.raises(ForeignCheckpointError) as caught:
        state.checkpointer.restore()
    assert "\n" not in caught.value.line()
    assert len(caught.value.line()) < 600
    state.close()


# Whole runs


def stopped_at(local: LocalRuns, run_id: str, steps: int) -> RunPaths:
    """A run whose checkpoints of steps 7, 14, ... and `steps` are there, and which goes on to 40."""
    paths = local.create(
        run_id, {"schedule.name": "constant", "checkpoint.keep_last": 9, "checkpoint.keep_best": False}
    )
    text = paths.run_toml.read_text()
    paths.run_toml.write_text(text.replace("max_steps = 40", f"max_steps = {steps}"))
    assert local.attempt(paths) == 0
    paths.run_toml.write_text(text)
    return paths


@pytest.fixture(scope="module")
def whole_constant(local: LocalRuns) -> RunPaths:
    return local.trained("whole-constant", {"schedule.name": "constant"})


@pytest.mark.parametrize("n_damaged", [1, 2])
def test_losses_after_a_fallback_equal_an_undisturbed_runs(
    local: LocalRuns, whole_constant: RunPaths, n_damaged: int
) -> None:
    paths = stopped_at(local, f"fallback-{n_damaged}", 24)
    for step in (24, 21)[:n_damaged]:
        flip(paths.checkpoint(step) / "optimizer.safetensors", -5, 4)
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole_constant)
    assert final_tensors(paths, 40) == final_tensors(whole_constant, 40)
    went_back_to = (21, 14)[n_damaged - 1]
    (resumed,) = local.events(paths, "run_resumed")
    assert resumed["from_step"] == went_back_to
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "checkpoint_damaged"]
    assert len(warnings) == n_damaged
    assert all("optimizer.safetensors is damaged" in event["message"] for event in warnings)
    assert warnings[0]["hint"] == f"went back to step {went_back_to}"


def test_a_run_without_an_intact_checkpoint_fails_in_one_line(
    local: LocalRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = stopped_at(local, "all-damaged", 14)
    for path in paths.checkpoints.iterdir():
        flip(path / "model.safetensors", 100, 1)
    capsys.readouterr()
    assert local.attempt(paths) == 1
    mark, line = capsys.readouterr().err.splitlines()
    assert mark.startswith("=== attempt 2")
    assert "no intact checkpoint is left" in line
    assert [event["kind"] for event in local.events(paths, "error")] == ["io"]
    assert [event["exit_code"] for event in local.events(paths, "run_finished")] == [0, 1]


def test_a_real_trainer_with_a_file_size_limit_goes_on_and_resumes_later(
    local: LocalRuns, whole_constant: RunPaths
) -> None:
    """EFBIG from the kernel, in a process of its own: no checkpoint fits, the log does."""
    paths = stopped_at(local, "limited", 14)
    size = (paths.checkpoint(14) / "optimizer.safetensors").stat().st_size
    limit = size // 2
    assert paths.events.stat().st_size * 4 < limit
    process = subprocess.run(
        torch_command("gpuworkbench.training", str(paths.root)),
        env=trainer_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert local.losses(paths) == local.losses(whole_constant), "it trained to its end"
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "checkpoint_failed"]
    assert [event["step"] for event in warnings] == [21], "told once: those of 28, 35 and 40 failed for the same reason"
    assert all("File too large" in event["message"] for event in warnings)
    assert all("unsaved since step 14" in event["message"] for event in warnings)
    last = local.events(paths)[-1]
    assert (last["type"], last["status"]) == ("run_finished", "failed")
    assert "the last checkpoint is of step 14" in last["reason"]
    assert not [name for name in os.listdir(paths.checkpoints) if name.startswith(".")]

    assert local.attempt(paths) == 0
    assert local.events(paths, "run_resumed")[-1]["from_step"] == 14
    assert local.losses(paths) == local.losses(whole_constant)
    assert final_tensors(paths, 40) == final_tensors(whole_constant, 40)
