"""A new run: every refusal comes before the run directory exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpuworkbench.config.loader import Override
from gpuworkbench.config.presets import Preset, load_preset
from gpuworkbench.config.presets import request as preset_request
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.data import PreparedData, absolute_paths, check_eval_tokens, prepare
from gpuworkbench.gpu.fit import DeviceChoice, select_device
from gpuworkbench.gpu.host import probe_host
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.launch.pretrained import with_pretrained
from gpuworkbench.launch.queue import refuse_busy
from gpuworkbench.launch.resolve import resolve
from gpuworkbench.launch.unfit import refuse_unfit
from gpuworkbench.runs.create import create_run, refuse_taken
from gpuworkbench.runs.paths import RunPaths, new_run_id, validate_run_id
from gpuworkbench.runs.turns import device_of

OnProgress = Callable[[str, float | None], None]


class LaunchRequest(NamedTuple):
    """What a person asked for."""

    preset: str
    runs_dir: Path
    sets: tuple[Override, ...] = ()
    steps: int | None = None
    cpu_twin: bool = False
    run_id: str | None = None
    force: bool = False  # train although the card falls short of the preset's, or too little memory is free
    queue: bool = False  # wait for a card that another run uses
    share: bool = False  # train beside the run that uses the card
    environ: Mapping[str, str] = os.environ
    allows_idle: bool = False  # a key may do nothing by itself: it is for what a comparison makes of it


class Prepared(NamedTuple):
    """A checked request: nothing was written outside the data cache."""

    preset: Preset
    config: RunConfig
    data: PreparedData


def check(
    request: LaunchRequest, on_progress: OnProgress | None = None, on_weights: OnProgress | None = None
) -> Prepared:
    """Preset, card and data, in this order, each refused with its own error; the resolved config.

    `on_progress` hears of data, `on_weights` of published weights (default: the same).
    Raises UsageError, RunError, ConfigError, DoesNotFitError, DeviceBusyError, DataError.
    """
    if request.run_id is not None:
        refuse_taken(RunPaths(request.runs_dir / validate_run_id(request.run_id)))
    preset = load_preset(request.preset)
    asked = preset_request(
        preset,
        sets=request.sets,
        environ=request.environ,
        cpu_twin=request.cpu_twin,
        steps=request.steps,
        allows_idle=request.allows_idle,
    )
    config = asked.build()
    choice: DeviceChoice = select_device(
        config, probe_cards(), request.preset, has_cpu_twin=preset.has_cpu_twin, force=request.force
    )
    if not (request.queue or request.share):
        refuse_busy(device_of(choice.kind, choice.uuid, choice.index))
    if config.train.init_from:
        config = with_pretrained(asked, config.train.init_from, on_weights or on_progress)
    is_free_only = not (request.queue or request.share)
    if not request.force:  # before the data is prepared, which may take long
        refuse_unfit(config, choice, probe_host(), request.runs_dir, is_free_only=is_free_only)
    config = msgspec.structs.replace(config, data=absolute_paths(config.data))
    data = prepare(config, on_progress=on_progress)
    if config.eval.interval_steps:
        check_eval_tokens(config, data.n_val_tokens)
    resolved = resolve(config, data, choice)
    if not request.force:
        refuse_unfit(resolved, choice, probe_host(), request.runs_dir, is_free_only=is_free_only)
    return Prepared(preset, resolved, data)


def create(
    request: LaunchRequest, on_progress: OnProgress | None = None, on_weights: OnProgress | None = None
) -> RunPaths:
    """Check the request and create its run directory. Raises as `check`, and RunError when the id is taken."""
    prepared = check(request, on_progress, on_weights)
    run_id = request.run_id or new_run_id(prepared.preset.name)
    return create_run(request.runs_dir, run_id, prepared.preset.text, dump_toml(prepared.config))
