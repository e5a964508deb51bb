"""Training without the app: `gpuworkbench --headless --preset NAME` and `--headless --resume RUN`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from gpuworkbench.commands.follow import caught_up_log, follow_trainer, wait_for
from gpuworkbench.commands.output import print_json
from gpuworkbench.config.loader import parse_set
from gpuworkbench.errors import ExitCode, UsageError
from gpuworkbench.launch import create as creation
from gpuworkbench.launch import resume as resumption
from gpuworkbench.launch.spawn import spawn_trainer
from gpuworkbench.runs.create import discard_run
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths, runs_dir
from gpuworkbench.runs.store import resolve_run

DETACH_TIMEOUT_S = 60.0


def run(arguments: argparse.Namespace) -> int:
    """Create, resume or fork a run and train it; returns the trainer's exit code."""
    check_flags(arguments)
    is_new = arguments.resume is None or arguments.fork
    paths, run_file = prepare(arguments)
    say(f"run {paths.run_id} in {paths.root}")
    log = caught_up_log(paths, show_from_start=False)
    process = spawn_trainer(paths)
    if arguments.detach:
        return detach(paths, process, arguments.json)
    code = follow_trainer(paths, process, as_json=arguments.json, log=log)
    if code == ExitCode.LOCKED:
        if run_file is not None:
            run_file.unlink(missing_ok=True)
        resumption.refuse_locked(paths)
    if code == ExitCode.USAGE and is_new and not any(paths.checkpoints.iterdir()):
        discard_run(paths)
    return code


def check_flags(arguments: argparse.Namespace) -> None:
    """UsageError for combinations that mean nothing."""
    if arguments.preset is None and arguments.resume is None:
        raise UsageError("nothing to do", "try `gpuworkbench --headless --preset quickstart`, or --help")
    if arguments.preset is not None and arguments.resume is not None:
        raise UsageError("--preset starts a run and --resume goes on with one", "give one of them")
    if not arguments.headless and not arguments.detach:
        raise UsageError("the run needs a way to be shown", "add --headless, or --detach to start it and return")
    if arguments.fork and arguments.resume is None:
        raise UsageError("--fork needs a run to fork from", "add --resume RUN")
    if arguments.resume is not None and arguments.cpu_twin:
        raise UsageError("--cpu-twin is chosen when a run starts", "leave it out: a resumed run stays what it is")
    if arguments.run_id is not None and arguments.resume is not None and not arguments.fork:
        raise UsageError("--run-id names a new run", "leave it out with --resume, or add --fork")


def prepare(arguments: argparse.Namespace) -> tuple[RunPaths, Path | None]:
    """The run's directory, and the run file a resume with changed keys wrote. Raises every kind of refusal."""
    directory = runs_dir(arguments.runs_dir)
    sets = tuple(parse_set(text) for text in arguments.sets)
    if arguments.resume is None:
        request = creation.LaunchRequest(
            preset=arguments.preset,
            runs_dir=directory,
            sets=sets,
            steps=arguments.steps,
            cpu_twin=arguments.cpu_twin,
            run_id=arguments.run_id,
        )
        return creation.create(request, on_progress=DataProgress()), None
    paths = resolve_run(directory, arguments.resume)
    if arguments.fork:
        child = resumption.fork(paths, directory, sets=sets, steps=arguments.steps, run_id=arguments.run_id)
        say(f"forked from {paths.run_id}")
        return child, None
    resumed = resumption.resume(paths, sets=sets, steps=arguments.steps)
    for difference in resumed.changed:
        say(f"changed: {difference}")
    return paths, resumed.run_file


def detach(paths: RunPaths, process: subprocess.Popen[bytes], as_json: bool) -> int:
    """Return once the trainer holds its run; raise nothing if it refuses later: `runs` tells."""
    wait_for(lambda: probe_lock(paths.lock) is not None or process.poll() is not None, DETACH_TIMEOUT_S)
    if process.poll() is not None and process.returncode not in (0, None):
        return follow_trainer(paths, process, as_json=as_json)
    if as_json:
        print_json({"run_id": paths.run_id, "path": str(paths.root), "pid": process.pid})
    else:
        print(f"training goes on in process {process.pid}; watch it with: gpuworkbench attach {paths.run_id}")
    return ExitCode.OK


def say(text: str) -> None:
    """A line for people; stdout is kept for data."""
    print(text, file=sys.stderr, flush=True)


class DataProgress:
    """Progress of data preparation on stderr: a line when a stage begins, at most one every two seconds within it."""

    def __init__(self) -> None:
        self._stage = ""
        self._said_s = 0.0

    def __call__(self, stage: str, fraction: float | None) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._said_s < 2.0:
            return
        self._stage, self._said_s = stage, now
        share = "" if fraction is None else f" {fraction:.0%}"
        say(f"data: {stage}{share}")
