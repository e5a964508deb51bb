"""One attempt at a run: load, restore, train, and how each way of ending is recorded."""

from __future__ import annotations

import contextlib
import hashlib
from typing import NamedTuple

from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.data import PreparedData, load_same_tokens
from gpuworkbench.data.tokenization.tokenizer import load_tokenizer
from gpuworkbench.errors import CheckpointError, DataError, DoesNotFitError, ExitCode, RunError
from gpuworkbench.events.schema import Error
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.runs.create import newest_run_file, run_files
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.announce import RunFile, announce
from gpuworkbench.training.controls import Controls, Signals, StopRequested
from gpuworkbench.training.live_changes import acknowledged_step, live_changes_at
from gpuworkbench.training.loop import leave_begun_windows, save_checkpoint, train
from gpuworkbench.training.measured import keep_measured
from gpuworkbench.training.memory_errors import first_line, is_out_of_memory
from gpuworkbench.training.out_of_memory import no_room_hint, note_out_of_memory, run_device
from gpuworkbench.training.pretrained import load_pretrained
from gpuworkbench.training.recovery import keep_settings, note_setting, settle
from gpuworkbench.training.setup import TrainingRun, build_run


class Outcome(NamedTuple):
    """How an attempt ended: the step reached and the fields of `run_finished`."""

    step: int
    status: str
    exit_code: int
    reason: str


def load_run_config(paths: RunPaths, name: str | None = None) -> tuple[RunConfig, RunFile]:
    """The run file of that name, else the newest one. Raises ConfigError, RunError."""
    path = newest_run_file(paths) if name is None else paths.root / name
    if path not in run_files(paths):
        raise RunError(f"{path.name} is no run file of {paths.run_id}", "resume the run without naming one")
    text = read_config_file(path)
    return build(parse_toml(text, str(path)), str(path)), RunFile(path, hashlib.sha256(text).hexdigest())


def refuse_lost_checkpoints(paths: RunPaths) -> None:
    """CheckpointError where the log acknowledges a checkpoint and none is there: training would begin anew, unasked."""
    paths.checkpoints.mkdir(exist_ok=True)
    step = acknowledged_step(paths.events)
    if step is not None:
        raise CheckpointError(
            f"{paths.run_id}: step {step} was saved, and no checkpoint is left in {paths.checkpoints}",
            "put it back, or start a new run",
        )


def begin_with_pretrained(run: TrainingRun) -> None:
    """Fill the model from `train.init_from`, where that is set. Raises ConfigError."""
    if run.config.train.init_from:
        run.pretrained = load_pretrained(
            run.model, run.config, alive=lambda: run.heartbeat.progress(0), kept=run.weights
        )


def keep_tokenizer(paths: RunPaths, data: PreparedData) -> None:
    """Put the tokenizer beside the weights, once: a later attempt needs no room for it. Raises RunError."""
    with contextlib.suppress(OSError, DataError):
        if load_tokenizer(paths.tokenizer).sha256 == data.tokenizer().sha256:
            return
    try:
        paths.tokenizer.mkdir(exist_ok=True)
        data.tokenizer().save(paths.tokenizer)
    except OSError as error:
        raise RunError(
            f"the tokenizer cannot be kept in {paths.tokenizer}: {error.strerror or error}", "check the disk"
        ) from None


def run_attempt(
    paths: RunPaths, events: EventWriter, heartbeat: HeartbeatWriter, signals: Signals, run_file: str | None = None
) -> Outcome:
    """Train the run in `paths` until it ends. Raises WorkbenchErrors; the caller records them."""
    return finish(open_run(paths, events, heartbeat, signals, run_file))


def open_run(
    paths: RunPaths, events: EventWriter, heartbeat: HeartbeatWriter, signals: Signals, run_file: str | None = None
) -> TrainingRun:
    """The run as its last checkpoint left it, announced, right before this attempt's first step.

    Raises ConfigError, DataError, RunError, CheckpointError, DoesNotFitError.
    """
    config, file = load_run_config(paths, run_file)
    data = load_same_tokens(config, paths.tokenizer)
    keep_tokenizer(paths, data)
    try:
        run = build_run(paths, config, data, events, heartbeat)
        restored = run.checkpointer.restore()
        if restored.step is None:
            refuse_lost_checkpoints(paths)
            begin_with_pretrained(run)
        else:
            leave_begun_windows(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(
            f"weights and optimizer do not fit the {run_device(config)}: {first_line(error)}",
            no_room_hint(error, config),
        ) from None
    announce(run, file, restored)
    if run.pretrained is not None:
        save_checkpoint(run, wait=True)  # from here on the run needs the folder no more
    keep_settings(run, live_changes_at(paths.events, restored.step or 0))
    run.controls = make_controls(run, signals)
    return run


def finish(run: TrainingRun) -> Outcome:
    """Train and turn each way of ending into an outcome, with a checkpoint where the state is sound.

    Raises what `train` and `settle` raise, once the checkpoint in flight is written.
    """
    try:
        ending = train_to_an_end(run)
        if settle(run) and ending.is_sound:
            save_checkpoint(run, wait=True)
    finally:
        run.checkpointer.wait()
        run.index.finish()
        run.telemetry.sample_memory(run.progress.step)
    keep_measured(run)
    step = run.progress.step
    if run.checkpointer.last_saved_step != step:
        last = run.checkpointer.last_saved_step
        since = "there is no checkpoint" if last is None else f"the last checkpoint is of step {last}"
        if ending.is_out_of_memory:
            goes_on = "a resume begins anew" if last is None else "a resume goes on from there"
            return Outcome(step, ending.status, ending.exit_code, f"{ending.reason}; {since}: {goes_on}")
        reason = f"step {step} could not be saved ({run.checkpointer.failure}); {since}"
        run.events.emit(Error, step=step, kind="io", message=reason, hint="free disk space and resume the run")
        return Outcome(step, "failed", ExitCode.FAILED, reason)
    return Outcome(step, ending.status, ending.exit_code, ending.reason)


class Ending(NamedTuple):
    """How training ended. Not `is_sound`: the weights belong to no step, so they are not saved."""

    status: str
    exit_code: ExitCode
    reason: str
    is_sound: bool = True
    is_out_of_memory: bool = False


def train_to_an_end(run: TrainingRun) -> Ending:
    """Train, and say how it ended. Raises NonfiniteError."""
    try:
        return Ending("completed", ExitCode.OK, train(run))
    except StopRequested as stop:
        return Ending("stopped", ExitCode.STOPPED, stop.reason)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        is_sound = note_out_of_memory(run, error)
        reason = f"out of memory in {run.activity}: the {run_device(run.config)} is full"
        return Ending("stopped", ExitCode.STOPPED, reason, is_sound=is_sound, is_out_of_memory=True)


def change_setting(run: TrainingRun, key: str, value: object) -> str:
    """Change a live setting and save it with the state of this step; returns what changed. Raises ConfigError.

    Where this step is saved already, a resume finds the change in the log.
    """
    old, new = note_setting(run, key, value)
    if settle(run):
        save_checkpoint(run, wait=True, is_asked_for=True)  # the answer promises it
    return f"{key}: {old:g} -> {new:g}"


def make_controls(run: TrainingRun, signals: Signals) -> Controls:
    """Control files and signals, wired to this run."""

    def checkpoint_now() -> str:
        if settle(run):
            save_checkpoint(run, is_asked_for=True)
        return f"checkpoint of step {run.progress.step}"

    return Controls(
        run.paths,
        run.events,
        signals,
        step=lambda: run.progress.step,
        save_checkpoint=checkpoint_now,
        change_setting=lambda key, value: change_setting(run, key, value),
        alive=lambda: run.heartbeat.progress(run.progress.step),
    )
