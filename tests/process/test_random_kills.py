"""Trainers killed at random moments, and within the commit of a checkpoint: nothing acknowledged is lost.

The short form is part of the tests. `make soak` runs the long one: GPUWORKBENCH_SOAK_KILLS kills (200), and with
strace every system call of the trainer's writes fails in turn.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuworkbench.errors import CheckpointError
from gpuworkbench.launch.spawn import spawn_trainer, torch_command, trainer_environment
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import list_checkpoints, verify_checkpoint
from gpuworkbench.runs.paths import RunPaths
from tests.fixtures.local_run import LocalRuns, final_tensors
from tests.fixtures.processes import no_orphans
from tests.fixtures.tiny_run import wait_until

SOAK_KILLS = int(os.environ.get("GPUWORKBENCH_SOAK_KILLS", "0"))
N_KILLS = SOAK_KILLS or 4
STEPS_PER_KILL = 30
SETS = {
    "schedule.name": "constant",
    "checkpoint.interval_steps": 3,
    "eval.interval_steps": 7,
    "checkpoint.keep_best": False,
}


@pytest.fixture(autouse=True)
def nothing_left(local: LocalRuns) -> Iterator[None]:
    with no_orphans(local.workspace.root):
        yield


def acknowledged(local: LocalRuns, paths: RunPaths) -> int:
    """The newest step whose checkpoint was acknowledged."""
    return max((event["step"] for event in local.events(paths, "checkpoint_saved")), default=0)


def newest_intact(paths: RunPaths) -> int:
    """The newest checkpoint that every byte of is right, as a resume would find it."""
    for reference in list_checkpoints(paths):
        try:
            verify_checkpoint(reference.path)
        except CheckpointError:
            continue
        return reference.step
    return 0


def is_committing(paths: RunPaths) -> bool:
    return any(name.startswith(".tmp-") for name in os.listdir(paths.checkpoints))


def wait_for_moment(local: LocalRuns, paths: RunPaths, draw: random.Random) -> str:
    """Return at a random moment after this attempt's first step; every second time within a commit."""
    attempts = len(local.events(paths, "run_started", "run_resumed"))
    wait_until(lambda: len(local.events(paths, "run_started", "run_resumed")) > attempts, what="attempt")
    seen = len(local.losses(paths)) + draw.randrange(1, STEPS_PER_KILL // 2)
    wait_until(lambda: len(local.losses(paths)) >= seen or probe_lock(paths.lock) is None, what="steps")
    if draw.random() < 0.5:
        time.sleep(draw.random() * 0.05)
        return "random"
    deadline = time.monotonic() + 5
    while not is_committing(paths) and time.monotonic() < deadline:
        time.sleep(0)
    time.sleep(draw.random() * 0.003)
    return "commit" if is_committing(paths) else "random"


@pytest.mark.timeout(300 + 30 * SOAK_KILLS)
def test_random_kills_lose_nothing_that_was_acknowledged(local: LocalRuns) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    draw = random.Random(seed)
    n_steps = N_KILLS * STEPS_PER_KILL
    paths = local.create("killed", {**SETS, "train.max_steps": n_steps})
    n_kills, moments = 0, {"random": 0, "commit": 0}
    while n_kills < N_KILLS:
        before = newest_intact(paths)
        trainer = spawn_trainer(paths, paths.run_toml)
        moment = wait_for_moment(local, paths, draw)
        if trainer.exit_code() is None:
            os.kill(trainer.pid, signal.SIGKILL)
            n_kills += 1
            moments[moment] += 1
        wait_until(lambda trainer=trainer: trainer.exit_code() is not None, what="end of the trainer")
        resumed = local.events(paths, "run_started", "run_resumed")[-1]["from_step"]
        assert resumed == before, "it went on from the newest intact checkpoint"
        assert newest_intact(paths) >= acknowledged(local, paths), f"seed {seed}: an acknowledged checkpoint is lost"
        if local.events(paths)[-1]["type"] == "run_finished":
            break
    assert local.attempt(paths) == 0
    print(f"{n_kills} kills: {moments}")
    undisturbed = local.trained("undisturbed", {**SETS, "train.max_steps": n_steps})
    assert local.losses(paths) == local.losses(undisturbed)
    assert final_tensors(paths, n_steps) == final_tensors(undisturbed, n_steps)
    evals = [{event["step"]: event["loss"] for event in local.events(each, "eval")} for each in (paths, undisturbed)]
    assert evals[0] == evals[1]
    assert sorted(os.listdir(paths.checkpoints)) == [path.path.name for path in reversed(list_checkpoints(paths))]
    assert n_kills >= min(3, N_KILLS)


# System calls that fail

CALLS = {"fsync": "EIO", "rename": "ENOSPC", "mkdir": "ENOSPC", "write": "ENOSPC"}
STRACE_SETS = {"train.max_steps": 12, "checkpoint.interval_steps": 5, "eval.interval_steps": 0}


def under_strace(paths: RunPaths, call: str, error: str, nth: int, log: Path) -> int:
    """One attempt in which the `nth` such call of every thread, and every later 50th, fails; returns the exit code."""
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    strace[-1] += f":when={nth}+50"
    with paths.trainer_log.open("ab") as output:
        process = subprocess.run(
            [*strace, *torch_command("gpuworkbench.training", str(paths.root))],
            env=trainer_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=120,
            check=False,
        )
    return process.returncode


def counts_per_thread(log: Path) -> int:
    """The most calls that one thread made."""
    found: dict[str, int] = {}
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r"(\d+) +\w+\(", line):
            found[match[1]] = found.get(match[1], 0) + 1
    return max(found.values(), default=0)


@pytest.mark.skipif(not SOAK_KILLS, reason="long; `make soak` runs it")
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("call", CALLS)
def test_each_system_call_of_a_trainer_fails_in_turn(local: LocalRuns, tmp_path: Path, call: str) -> None:
    """Wherever it fails, the run trains to its end or says in one line why not, and a resume ends identically."""
    undisturbed = local.trained(f"whole-{call}", STRACE_SETS)
    counting = local.create(f"counting-{call}", STRACE_SETS)
    assert under_strace(counting, call, CALLS[call], 60_000, tmp_path / "count") == 0
    total = counts_per_thread(tmp_path / "count")
    assert total > 0
    codes = []
    for nth in sorted({round(1 + i * (total - 1) / 24) for i in range(25)}):
        paths = local.create(f"{call}-{nth}", STRACE_SETS)
        code = under_strace(paths, call, CALLS[call], nth, tmp_path / "log")
        assert code in (0, 1, 2), (nth, paths.trainer_log.read_text())
        codes.append(code)
        for reference in list_checkpoints(paths):
            verify_checkpoint(reference.path)
        assert newest_intact(paths) >= acknowledged(local, paths), nth
        assert local.attempt(paths) == 0, nth
        assert local.losses(paths) == local.losses(undisturbed), nth
        assert final_tensors(paths, 12) == final_tensors(undisturbed, 12), nth
    print(f"{call}: {total} calls a thread, exit codes {codes}")
