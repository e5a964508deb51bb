"""A new run: every refusal comes before the run directory exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from gpuworkbench.config.loader import Override
from gpuworkbench.config.presets import Preset, configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.data import PreparedData, check_eval_tokens, prepare
from gpuworkbench.gpu.fit import DeviceChoice, select_device
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.launch.resolve import resolve
from gpuworkbench.runs.create import create_run, refuse_taken
from gpuworkbench.runs.paths import RunPaths, new_run_id, validate_run_id

OnProgress = Callable[[str, float | None], None]


class LaunchRequest(NamedTuple):
    """What a person asked for."""

    preset: str
    runs_dir: Path
    sets: tuple[Override, ...] = ()
    steps: int | None = None
    cpu_twin: bool = False
    run_id: str | None = None
    force: bool = False  # train on a card that falls short of the preset's card section
    environ: Mapping[str, str] = os.environ


class Prepared(NamedTuple):
    """A checked request: nothing was written outside the data cache."""

    preset: Preset
    config: RunConfig
    data: PreparedData


def check(request: LaunchRequest, on_progress: OnProgress | None = None) -> Prepared:
    """Preset, card and data, in this order, each refused with its own error; the resolved config.

    Raises UsageError, RunError, ConfigError, DoesNotFitError, DataError.
    """
    if request.run_id is not None:
        refuse_taken(RunPaths(request.runs_dir / validate_run_id(request.run_id)))
    preset = load_preset(request.preset)
    config = configure(
        preset, sets=request.sets, environ=request.environ, cpu_twin=request.cpu_twin, steps=request.steps
    )
    choice: DeviceChoice = select_device(
        config, probe_cards(), request.preset, has_cpu_twin=preset.has_cpu_twin, force=request.force
    )
    data = prepare(config, on_progress=on_progress)
    if config.eval.interval_steps:
        check_eval_tokens(config, data.n_val_tokens)
    return Prepared(preset, resolve(config, data, choice), data)


def create(request: LaunchRequest, on_progress: OnProgress | None = None) -> RunPaths:
    """Check the request and create its run directory. Raises as `check`, and RunError when the id is taken."""
    prepared = check(request, on_progress)
    run_id = request.run_id or new_run_id(prepared.preset.name)
    return create_run(request.runs_dir, run_id, prepared.preset.text, dump_toml(prepared.config))
