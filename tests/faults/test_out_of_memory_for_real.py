"""The host's allocator really says no: an address space limit in a process of its own, no exception made by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpuworkbench.launch.resume import resume, run_config
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from tests.fixtures.local_run import LocalRuns
from tests.fixtures.tiny_run import REPOSITORY

# The trainer's own steps, with so much room from the moment the run is built.
TRAINER = """
import resource, sys
from pathlib import Path
import psutil
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import last_attempt
from gpuworkbench.training.attempt import finish, open_run
from gpuworkbench.training.controls import Signals

paths = RunPaths(Path(sys.argv[1]))
events = EventWriter(paths.events, attempt=(last_attempt(paths.events) or 0) + 1)
run = open_run(paths, events, HeartbeatWriter(paths.heartbeat), Signals())
limit = psutil.Process().memory_info().vms + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
outcome = finish(run)
events.close()
print(outcome.reason)
sys.exit(int(outcome.exit_code))
"""
BIG = {
    "train.max_steps": 2,
    "train.grad_accum_steps": 1,
    "eval.interval_steps": 0,
    "checkpoint.interval_steps": 0,
}


def trained(paths: RunPaths, local: LocalRuns, room_mib: int) -> subprocess.CompletedProcess[str]:
    environ = {**local.workspace.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAINER, str(paths.root), str(room_mib)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def test_training_stops_and_applying_the_fix_until_it_fits_trains_to_the_end(local: LocalRuns) -> None:
    """1,024 sequences need about 230 MiB, and there is room for 150."""
    paths = local.create("too-big", {**BIG, "train.micro_batch_size": 1024})
    first = trained(paths, local, 150)
    assert first.returncode == 75, first.stderr
    (error,) = local.events(paths, "error")
    assert (error["kind"], error["why"]) == ("cuda_oom", "too_big")
    assert error["where"] in ("forward", "backward")
    assert error["requested_bytes"] > 2**20
    assert error["biggest"][0]["num_bytes"] >= 1024 * 32 * 32 * 4, "one activation at least"
    assert [reference.step for reference in list_checkpoints(paths)] == [0]
    for _ in range(4):
        resume(paths, apply_fix=True, environ={})
        last = trained(paths, local, 150)
        if last.returncode == 0:
            break
    assert last.returncode == 0, last.stderr
    train = run_config(paths).train
    assert train.micro_batch_size < 1024
    assert train.micro_batch_size * train.grad_accum_steps == 1024
    assert local.losses(paths).keys() == {1, 2}


def test_validation_makes_its_batch_smaller(local: LocalRuns) -> None:
    """Training is small; a validation batch is not. The reference is the same run with all the memory it wants."""
    sets = {**BIG, "train.micro_batch_size": 4, "eval.interval_steps": 2}
    sets |= {"eval.micro_batch_size": 4096, "eval.tokens": 4096 * 32}
    sets |= {"data.source": "synthetic", "data.synthetic_tokens": 4_000_000}
    paths, reference = local.create("eval-too-big", sets), local.trained("eval-with-room", sets)
    done = trained(paths, local, 100)
    assert done.returncode == 0, done.stderr + done.stdout
    codes = [event["code"] for event in local.events(paths, "warning")]
    assert codes.count("eval_batch_reduced") >= 1
    (evaluation,), (expected,) = local.events(paths, "eval"), local.events(reference, "eval")
    assert evaluation["tokens"] == expected["tokens"] == 4096 * 32
    assert evaluation["loss"] == pytest.approx(expected["loss"], rel=1e-6)
