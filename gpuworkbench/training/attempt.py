"""One attempt at a run: load, restore, train, and how each way of ending is recorded."""

from __future__ import annotations

import hashlib
import os
import platform
from typing import Any, NamedTuple

import torch

from gpuworkbench import __version__
from gpuworkbench.config.diff import Difference, differences
from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml, read_regular_file
from gpuworkbench.data import PreparedData, prepare
from gpuworkbench.errors import DataError, ExitCode
from gpuworkbench.events.schema import ConfigChanged, Error, PhaseChanged, RunResumed, RunStarted
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.runs.create import newest_run_file, run_files
from gpuworkbench.runs.env_record import append_env
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.checkpoint import Restored
from gpuworkbench.training.controls import Controls, Signals, StopRequested
from gpuworkbench.training.loop import PHASE, save_checkpoint, settle, train
from gpuworkbench.training.setup import TrainingRun, build_run


class Outcome(NamedTuple):
    """How an attempt ended: the step reached and the fields of `run_finished`."""

    step: int
    status: str
    exit_code: int
    reason: str


def load_run_config(paths: RunPaths) -> tuple[RunConfig, str]:
    """The newest run file's config and its sha256. Raises ConfigError."""
    path = newest_run_file(paths)
    text = read_regular_file(path)
    return build(parse_toml(text, str(path)), str(path)), hashlib.sha256(text).hexdigest()


def config_changes(paths: RunPaths, attempt: int) -> list[Difference]:
    """What the run file of this attempt changed, where the resume wrote one."""
    files = run_files(paths)
    if len(files) < 2 or files[-1] != paths.attempt_toml(attempt):
        return []
    old, new = (build(parse_toml(read_regular_file(path), str(path)), str(path)) for path in files[-2:])
    return differences(old, new)


def load_data(config: RunConfig) -> PreparedData:
    """The run's tokens; refuses other tokens than the run began with. Raises DataError."""
    data = prepare(config)
    if config.data.sha256 is not None and data.sha256 != config.data.sha256:
        raise DataError(
            f"data.source = {config.data.source!r} gives other tokens than this run was made with "
            f"({data.sha256[:12]} now, {config.data.sha256[:12]} then)",
            "restore the data, or train on with --resume RUN --fork",
        )
    return data


def run_attempt(paths: RunPaths, events: EventWriter, heartbeat: HeartbeatWriter, signals: Signals) -> Outcome:
    """Train the run in `paths` until it ends. Raises WorkbenchErrors; the caller records them."""
    config, config_sha256 = load_run_config(paths)
    data = load_data(config)
    paths.tokenizer.mkdir(exist_ok=True)
    data.tokenizer().save(paths.tokenizer)
    run = build_run(paths, config, data, events, heartbeat)
    restored = run.checkpointer.restore()
    announce(run, config_sha256, restored)
    run.controls = make_controls(run, signals)
    return finish(run)


def finish(run: TrainingRun) -> Outcome:
    """Train and turn each way of ending into an outcome, with a checkpoint where the state is sound."""
    try:
        reason = train(run)
        outcome = Outcome(run.progress.step, "completed", ExitCode.OK, reason)
    except StopRequested as stop:
        outcome = Outcome(run.progress.step, "stopped", ExitCode.STOPPED, stop.reason)
    except torch.OutOfMemoryError as error:
        outcome = out_of_memory(run, error)
    run.index.finish()
    if settle(run):
        save_checkpoint(run, wait=True)
    run.telemetry.sample_memory(run.progress.step)
    if run.checkpointer.last_saved_step != run.progress.step:
        message = f"step {run.progress.step} is not saved: {run.checkpointer.failure}"
        return Outcome(run.progress.step, "failed", ExitCode.FAILED, message)
    return outcome


def out_of_memory(run: TrainingRun, error: torch.OutOfMemoryError) -> Outcome:
    """The card is full: record it; weights and optimizer are those of the last finished step."""
    run.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    half = max(run.config.train.micro_batch_size // 2, 1)
    accum = run.config.train.grad_accum_steps * run.config.train.micro_batch_size // half
    run.events.emit(
        Error,
        step=run.progress.step,
        kind="cuda_oom",
        message=str(error).splitlines()[0],
        hint=f"halve the micro-batch at the same tokens per step: --set train.micro_batch_size={half} "
        f"--set train.grad_accum_steps={accum}",
    )
    return Outcome(run.progress.step, "stopped", ExitCode.STOPPED, "out of CUDA memory")


def announce(run: TrainingRun, config_sha256: str, restored: Restored) -> None:
    """The attempt's first events: what runs where, from which step, and what is worth a warning."""
    config, events = run.config, run.events
    run.start_event_fields = {
        "run_id": run.paths.root.name,
        "preset": config.preset,
        "pid": os.getpid(),
        "config_sha256": config_sha256,
        "device": str(run.device.torch_device),
        "card": run.device.card,
        "simulated_card": run.device.simulated_card,
        "max_steps": run.max_steps,
        "n_params": config.model.n_params(),
        "is_cpu_twin": config.is_cpu_twin,
    }
    step = restored.step or 0
    kind = RunStarted if events.attempt == 1 else RunResumed
    events.emit(kind, step=step, from_step=step, **run.start_event_fields)
    for change in config_changes(run.paths, events.attempt):
        events.emit(ConfigChanged, step=step, key=change.key, old=change.old, new=change.new)
    for line in restored.damaged:
        hint = f"went back to step {step}"
        events.emit(WarningEvent, step=step, code="checkpoint_damaged", message=line, hint=hint)
    for code, message in run.notices:
        events.emit(WarningEvent, step=step, code=code, message=message)
    append_env(run.paths, events.attempt, environment(run))
    planned = run.max_steps - step
    events.emit(
        PhaseChanged,
        step=step,
        from_phase=None,
        to_phase=PHASE,
        reason="every step is a full step",
        planned_steps=planned,
    )
    run.heartbeat.progress(step)


def environment(run: TrainingRun) -> dict[str, Any]:
    """What this attempt runs on, for env.json."""
    return {
        "gpuworkbench": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "device": str(run.device.torch_device),
        "card": run.device.card,
        "simulated_card": run.device.simulated_card,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "mode": run.config.train.mode,
        "precision": run.precision.name,
        "platform": platform.platform(),
    }


def make_controls(run: TrainingRun, signals: Signals) -> Controls:
    """Control files and signals, wired to this run."""

    def request_checkpoint() -> None:
        run.checkpoint_requested = True

    def change_setting(key: str, value: object) -> str:
        old, new = run.settings.change(key, value)
        run.events.emit(ConfigChanged, step=run.progress.step, key=key, old=old, new=new)
        # Saved at once, so that a resume goes on with the changed value.
        run.checkpoint_requested = True
        return f"{key}: {old:g} -> {new:g}"

    return Controls(
        run.paths,
        run.events,
        signals,
        request_checkpoint=request_checkpoint,
        change_setting=change_setting,
        alive=lambda: run.heartbeat.progress(run.progress.step),
    )
