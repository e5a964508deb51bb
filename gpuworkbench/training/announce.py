"""An attempt's first events: what runs where, from which step, and what is different from the attempt before."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpuworkbench import __version__
from gpuworkbench.config.diff import Difference, differences
from gpuworkbench.config.loader import build
from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.errors import ConfigError
from gpuworkbench.events.schema import ConfigChanged, RunResumed, RunStarted
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.runs.create import run_files
from gpuworkbench.runs.env_record import append_env, read_env
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.checkpoint import Restored
from gpuworkbench.training.loop import announce_stage
from gpuworkbench.training.measured import predicted_peak_bytes
from gpuworkbench.training.recovery import warn_of_damage
from gpuworkbench.training.setup import TrainingRun

_NOT_COMPARED = frozenset({"attempt", "run_file", "platform", "precision_by_phase"})


class RunFile(NamedTuple):
    """The configuration an attempt trains with: the file, and the sha256 of its text."""

    path: Path
    sha256: str


def announce(run: TrainingRun, file: RunFile, restored: Restored) -> None:
    """Emit the attempt's first events and add its record to env.json."""
    config, events, step = run.config, run.events, restored.step or 0
    run.start_event_fields = {
        "run_id": run.paths.root.name,
        "preset": config.preset,
        "pid": os.getpid(),
        "config_sha256": file.sha256,
        "device": str(run.device.torch_device),
        "card": run.device.card,
        "simulated_card": run.device.simulated_card,
        "max_steps": run.max_steps,
        "max_tokens": max_tokens(run),
        "n_params": config.model.n_params(),
        "is_cpu_twin": config.is_cpu_twin,
        "predicted_bytes": predicted_peak_bytes(config),
    }
    kind = RunStarted if events.attempt == 1 else RunResumed
    events.emit(kind, step=step, from_step=step, **run.start_event_fields, **began_with(run))
    previous = (read_env(run.paths) or [{}])[-1]
    record = {**environment(run), "run_file": file.path.name}
    for change in config_changes(run.paths, previous, file.path):
        events.emit(ConfigChanged, step=step, key=change.key, old=change.old, new=change.new)
    warn_of_damage(run, restored)
    warn_of_another_environment(run, previous, record)
    for code, message in run.notices:
        events.emit(WarningEvent, step=step, code=code, message=message)
    keep_environment(run, record)
    run.phases.announce(step, *run.hybrid.announcement(max(run.max_steps - step, 0)))
    announce_stage(run)
    run.heartbeat.progress(step)


def began_with(run: TrainingRun) -> dict[str, Any]:
    """Which published weights this attempt began with; nothing where it began with none."""
    loaded = run.pretrained
    if loaded is None:
        return {}
    return {"init_from": loaded.folder, "init_tensors": loaded.n_tensors, "init_dtypes": loaded.dtypes}


def max_tokens(run: TrainingRun) -> int | None:
    """Tokens seen at the end of the run; None where every step has as many."""
    progress = run.progress
    if not run.curriculum.is_on:
        return None
    return run.curriculum.tokens_after(progress.tokens_seen, max(run.max_steps - progress.step, 0))


def config_changes(paths: RunPaths, previous: Mapping[str, Any], newest: Path) -> list[Difference]:
    """What differs from the run file that the attempt before trained with."""
    names = {path.name: path for path in run_files(paths)}
    older = names.get(str(previous.get("run_file")))
    if older is None or older == newest:
        return []
    try:
        old, new = (build(parse_toml(read_config_file(path), str(path)), str(path)) for path in (older, newest))
    except ConfigError:  # somebody edited the older file; what counts is the newest one
        return []
    return differences(old, new)


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
        "precision": run.precisions.current.name,
        "precision_by_phase": run.precisions.describe(run.config),
        "platform": platform.platform(),
    }


def warn_of_another_environment(run: TrainingRun, previous: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """A warning where versions or hardware are not those of the attempt before."""
    changed = [
        f"{key} {previous[key]} -> {value}"
        for key, value in record.items()
        if key not in _NOT_COMPARED and key in previous and previous[key] != value
    ]
    if changed:
        run.events.emit(
            WarningEvent,
            step=run.progress.step,
            code="environment_changed",
            message=f"this attempt runs on something else than the one before: {', '.join(changed)}",
            hint="losses may differ in their last digits from those of an uninterrupted run",
        )


def keep_environment(run: TrainingRun, record: Mapping[str, Any]) -> None:
    """Add the record to env.json; a full disk costs the record, not the training."""
    try:
        append_env(run.paths, run.events.attempt, record)
    except OSError as error:
        run.events.emit(
            WarningEvent,
            step=run.progress.step,
            code="env_not_written",
            message=f"env.json could not be written: {error.strerror or error}",
            hint="check the disk that holds the runs",
        )
