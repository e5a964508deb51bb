"""`gpuworkbench` without a command: a new run or a saved one, headless, detached or in the app."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import NamedTuple

from gpuworkbench.commands.app import open_app, require_terminal
from gpuworkbench.commands.follow import ForwardedSignals, caught_up_log, follow_trainer, forwarded_signals, wait_for
from gpuworkbench.commands.output import print_json, say, tell
from gpuworkbench.commands.progress import StageProgress
from gpuworkbench.config.loader import parse_set
from gpuworkbench.errors import ExitCode, UsageError, WorkbenchError
from gpuworkbench.launch import create as creation
from gpuworkbench.launch import resume as resumption
from gpuworkbench.launch.fork import fork
from gpuworkbench.launch.micro_batch import sets_for_launch
from gpuworkbench.launch.queue import device_of_config, users_of
from gpuworkbench.launch.refused import discard_refused
from gpuworkbench.launch.spawn import TrainerProcess, spawn_trainer
from gpuworkbench.runs.heartbeat import PHASE_QUEUED, read_heartbeat
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths, name_to_type, runs_dir
from gpuworkbench.runs.store import resolve_run
from gpuworkbench.runs.turns import busy_error
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
        trainer = signals.trainer = spawned(plan, arguments)
        wait_for(trainer.is_settled, START_TIMEOUT_S)
        code = trainer.exit_code()
        if code == ExitCode.LOCKED:
            raise refused_lock(plan)
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


def spawned(plan: Plan, arguments: argparse.Namespace) -> TrainerProcess:
    """The plan's trainer; what was made for it goes again where it cannot be started. Raises RunError."""
    try:
        return spawn_trainer(plan.paths, plan.run_file, queue=arguments.queue, share=arguments.force)
    except WorkbenchError:
        discard(plan, ExitCode.LOCKED)
        raise


def refused_lock(plan: Plan) -> WorkbenchError:
    """Why the trainer found something locked: its run, or its card, which another run took in this moment."""
    holder = probe_lock(plan.paths.lock)
    device = device_of_config(resumption.run_config(plan.paths))
    users = users_of(device)
    discard(plan, ExitCode.LOCKED)
    is_card_busy = holder is None and device.is_card
    return (
        busy_error(device, users, can_share=plan.is_new_run)
        if is_card_busy
        else resumption.locked_by(plan.paths, holder)
    )


def discard(plan: Plan, code: int) -> None:
    """Take back what was made for an attempt that was refused before it began."""
    discard_refused(plan.paths, plan.run_file, code, is_new_run=plan.is_new_run, is_new_file=plan.is_new_file)


def followed(plan: Plan, trainer: TrainerProcess, signals: ForwardedSignals, log: LiveLog, *, as_json: bool) -> int:
    """Show the trainer until it ends, and take back what was made for one that refused; returns its exit code."""
    code = follow_trainer(trainer, signals, log, as_json=as_json)
    discard(plan, code)
    return code


def check_flags(arguments: argparse.Namespace) -> None:
    """UsageError for combinations that mean nothing."""
    is_app = not arguments.headless and not arguments.detach
    if arguments.preset is not None and arguments.resume is not None:
        raise UsageError("--preset starts a run and --resume goes on with one", "give one of them")
    if arguments.fork and arguments.resume is None:
        raise UsageError("--fork needs a run to fork from", "add --resume RUN")
    if arguments.apply_fix and (arguments.resume is None or arguments.fork):
        raise UsageError("--apply-fix changes a run that ran out of memory", "use it with --resume RUN, without --fork")
    if arguments.resume is not None and arguments.cpu_twin:
        raise UsageError("--cpu-twin is chosen when a run starts", "leave it out: a resumed run stays what it is")
    if arguments.resume is not None and arguments.force:
        raise UsageError("--force is for starting a run", "leave it out: a resumed run keeps its card")
    if arguments.resume is not None and arguments.largest_micro_batch:
        raise UsageError("--largest-micro-batch is for starting a run", "leave it out: a resumed run keeps its own")
    if arguments.queue and arguments.force:
        raise UsageError("--queue waits for a card and --force shares it", "give one of them")
    if arguments.run_id is not None and arguments.resume is not None and not arguments.fork:
        raise UsageError("--run-id names a new run", "leave it out with --resume, or add --fork")
    if arguments.preset is None and arguments.resume is None:
        flags = {"--steps": arguments.steps, "--set": arguments.sets, "--run-id": arguments.run_id}
        switches = {"--cpu-twin": arguments.cpu_twin, "--force": arguments.force, "--queue": arguments.queue}
        switches["--largest-micro-batch"] = arguments.largest_micro_batch
        given = [flag for flag, value in {**flags, **switches}.items() if value]
        if given or not is_app:
            what = given[0] if given else "--headless" if arguments.headless else "--detach"
            raise UsageError(f"{what} needs a run", "try `gpuworkbench --headless --preset quickstart`, or --help")
    if is_app:
        require_terminal(arguments)


def prepare(arguments: argparse.Namespace) -> Plan:
    """The run to train, with the run file to train it by. Raises every kind of refusal."""
    directory = runs_dir(arguments.runs_dir)
    sets, steps, queue = tuple(parse_set(text) for text in arguments.sets), arguments.steps, arguments.queue
    if arguments.resume is None:
        request = creation.LaunchRequest(
            preset=arguments.preset,
            runs_dir=directory,
            sets=sets,
            steps=steps,
            cpu_twin=arguments.cpu_twin,
            run_id=arguments.run_id,
            force=arguments.force,
            queue=queue,
            share=arguments.force,
        )
        is_asked_for = arguments.largest_micro_batch
        found = sets_for_launch(request, say, is_asked_for=is_asked_for)
        request = request._replace(sets=(*request.sets, *found))
        created = creation.create(request, on_progress=StageProgress(), on_weights=StageProgress("weights"))
        return Plan(created, created.run_toml, is_new_run=True, is_new_file=True)
    parent = resolve_run(directory, arguments.resume)
    if arguments.fork:
        child = fork(
            parent,
            directory,
            sets=sets,
            steps=arguments.steps,
            run_id=arguments.run_id,
            queue=arguments.queue,
            on_progress=StageProgress(),
        )
        say(f"forked from {parent.run_id}")
        return Plan(child, child.run_toml, is_new_run=True, is_new_file=True)
    resumed = resumption.resume(parent, sets=sets, steps=steps, queue=queue, apply_fix=arguments.apply_fix)
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


def detached(paths: RunPaths, pid: int, as_json: bool) -> int:
    """Say where the run goes on. If its trainer refuses later, `runs` and `attach` tell."""
    if as_json:
        print_json({"run_id": paths.run_id, "path": str(paths.root), "pid": pid})
    else:
        beat = read_heartbeat(paths.heartbeat)
        is_queued = beat is not None and beat.pid == pid and beat.phase == PHASE_QUEUED
        what = "it waits for its turn" if is_queued else "training goes on"
        tell(f"{what} in process {pid}; watch it with: gpuworkbench attach {shlex.quote(name_to_type(paths))}")
    return ExitCode.OK
