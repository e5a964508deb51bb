"""`gpuworkbench` without a command: a new run or a saved one, headless, detached or in the app."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import NamedTuple

from gpuworkbench.commands.app import open_app, require_terminal
from gpuworkbench.commands.follow import ForwardedSignals, caught_up_log, follow_trainer, forwarded_signals, wait_for
from gpuworkbench.commands.output import print_json, say, tell
from gpuworkbench.commands.progress import DataProgress
from gpuworkbench.config.loader import parse_set
from gpuworkbench.errors import ExitCode, UsageError
from gpuworkbench.launch import create as creation
from gpuworkbench.launch import resume as resumption
from gpuworkbench.launch.fork import fork
from gpuworkbench.launch.spawn import TrainerProcess, spawn_trainer
from gpuworkbench.runs.create import discard_run
from gpuworkbench.runs.heartbeat import PHASE_QUEUED, read_heartbeat
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths, name_to_type, runs_dir
from gpuworkbench.runs.store import resolve_run
from gpuworkbench.runs.tail import tail_events
from gpuworkbench.state.live_log import LiveLog

START_TIMEOUT_S = 60.0  # for an interpreter to start and to take the run's lock


class Plan(NamedTuple):
    """What is to be trained, and what was made for it."""

    paths: RunPaths
    run_file: Path
    is_new_run: bool
    is_new_file: bool


def run(arguments: argparse.Namespace) -> int:
    """Create, resume or fork a run and train it; returns the trainer's exit code, or the app's."""
    check_flags(arguments)
    if arguments.preset is None and arguments.resume is None:
        return open_app(arguments)
    plan = prepare(arguments)
    log = caught_up_log(plan.paths, show_from_start=False)
    with forwarded_signals() as signals:
        trainer = signals.trainer = spawn_trainer(plan.paths, plan.run_file)
        wait_for(trainer.is_settled, START_TIMEOUT_S)
        code = trainer.exit_code()
        if code == ExitCode.LOCKED:
            if plan.is_new_file and not plan.is_new_run:
                plan.run_file.unlink(missing_ok=True)
            raise resumption.locked_by(plan.paths, probe_lock(plan.paths.lock))
        say(f"run {plan.paths.run_id} in {plan.paths.root}")
        if arguments.detach:
            wait_for_start(trainer)
            code = trainer.exit_code()
        if arguments.detach and code in (None, ExitCode.OK):
            return detached(plan.paths, trainer.pid, arguments.json)
        if arguments.headless or arguments.detach or code not in (None, ExitCode.OK):
            return followed(plan, trainer, signals, log, as_json=arguments.json)
    log.close()
    return open_app(arguments, trainer)  # no signal is passed on: whatever ends a screen leaves its run alone


def followed(plan: Plan, trainer: TrainerProcess, signals: ForwardedSignals, log: LiveLog, *, as_json: bool) -> int:
    """Show the trainer until it ends, and take back what was made for one that refused; returns its exit code."""
    code = follow_trainer(trainer, signals, log, as_json=as_json)
    if code in (ExitCode.USAGE, ExitCode.DOES_NOT_FIT):
        discard_refused(plan)
    return code


def check_flags(arguments: argparse.Namespace) -> None:
    """UsageError for combinations that mean nothing."""
    is_app = not arguments.headless and not arguments.detach
    if arguments.preset is not None and arguments.resume is not None:
        raise UsageError("--preset starts a run and --resume goes on with one", "give one of them")
    if arguments.fork and arguments.resume is None:
        raise UsageError("--fork needs a run to fork from", "add --resume RUN")
    if arguments.resume is not None and arguments.cpu_twin:
        raise UsageError("--cpu-twin is chosen when a run starts", "leave it out: a resumed run stays what it is")
    if arguments.resume is not None and arguments.force:
        raise UsageError("--force is for starting a run", "leave it out: a resumed run keeps its card")
    if arguments.run_id is not None and arguments.resume is not None and not arguments.fork:
        raise UsageError("--run-id names a new run", "leave it out with --resume, or add --fork")
    if arguments.preset is None and arguments.resume is None:
        flags = {"--steps": arguments.steps, "--set": arguments.sets, "--run-id": arguments.run_id}
        given = [
            flag
            for flag, value in {**flags, "--cpu-twin": arguments.cpu_twin, "--force": arguments.force}.items()
            if value
        ]
        if given or not is_app:
            what = given[0] if given else "--headless" if arguments.headless else "--detach"
            raise UsageError(f"{what} needs a run", "try `gpuworkbench --headless --preset quickstart`, or --help")
    if is_app:
        require_terminal(arguments)


def prepare(arguments: argparse.Namespace) -> Plan:
    """The run to train, with the run file to train it by. Raises every kind of refusal."""
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
            force=arguments.force,
        )
        created = creation.create(request, on_progress=DataProgress())
        return Plan(created, created.run_toml, is_new_run=True, is_new_file=True)
    parent = resolve_run(directory, arguments.resume)
    if arguments.fork:
        child = fork(parent, directory, sets=sets, steps=arguments.steps, run_id=arguments.run_id)
        say(f"forked from {parent.run_id}")
        return Plan(child, child.run_toml, is_new_run=True, is_new_file=True)
    resumed = resumption.resume(parent, sets=sets, steps=arguments.steps)
    for difference in resumed.changed:
        say(f"changed: {difference}")
    return Plan(parent, resumed.run_file, is_new_run=False, is_new_file=resumed.is_new_file)


def wait_for_start(trainer: TrainerProcess) -> None:
    """Return once the trainer says that it trains or queues, so is past its refusals, or has ended.

    Or after `START_TIMEOUT_S`: a large run reads its data for longer.
    """
    log = caught_up_log(trainer.paths, show_from_start=False)

    def has_started() -> bool:
        trainer.deliver()
        beat = read_heartbeat(trainer.paths.heartbeat)
        is_queued = beat is not None and beat.pid == trainer.pid and beat.phase == PHASE_QUEUED
        return trainer.exit_code() is not None or is_queued or log.catch_up().pid == trainer.pid

    try:
        wait_for(has_started, START_TIMEOUT_S)
    finally:
        log.close()


def discard_refused(plan: Plan) -> None:
    """Take back what was made for an attempt that the trainer refused before it began: the run, or its run file."""
    if has_begun(plan.paths):
        return
    if plan.is_new_run:
        discard_run(plan.paths)
    elif plan.is_new_file:
        plan.run_file.unlink(missing_ok=True)


def has_begun(paths: RunPaths) -> bool:
    """Whether the newest attempt in the log got further than to an error."""
    events = tail_events(paths.events)
    newest = max((event.attempt for event in events), default=None)
    return any(event.attempt == newest and event.type not in ("error", "run_finished") for event in events)


def detached(paths: RunPaths, pid: int, as_json: bool) -> int:
    """Say where the run goes on. If its trainer refuses later, `runs` and `attach` tell."""
    if as_json:
        print_json({"run_id": paths.run_id, "path": str(paths.root), "pid": pid})
    else:
        tell(
            f"training goes on in process {pid}; watch it with: gpuworkbench attach {shlex.quote(name_to_type(paths))}"
        )
    return ExitCode.OK
