"""`gpuworkbench bench lr`: a range test, then short trainings at a grid of rates, in a subprocess that can be ended."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.commands import torch_process
from gpuworkbench.commands.bench_lr_report import print_report
from gpuworkbench.commands.output import say
from gpuworkbench.commands.progress import StageProgress
from gpuworkbench.config.loader import Override, build, parse_set
from gpuworkbench.config.optimizers import spec_of
from gpuworkbench.config.own_presets import own_preset, own_preset_path, save_own_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import check_eval_tokens
from gpuworkbench.errors import ConfigError, ExitCode, UsageError
from gpuworkbench.launch.create import LaunchRequest, Prepared, check
from gpuworkbench.launch.resume import as_table
from gpuworkbench.launch.spawn import torch_command
from gpuworkbench.plan.lr_search import RANGE_TEST_STEPS, SearchPlan, best_of, geometric_grid, next_trials
from gpuworkbench.plan.lr_search_files import SearchFiles, default_directory, open_search
from gpuworkbench.units import format_duration, format_number

DEFAULT_STEPS = 200
DEFAULT_GRID_POINTS = 7
SAY_INTERVAL_S = 2.0


class Search(NamedTuple):
    """A checked request, and where its results are."""

    prepared: Prepared
    config: RunConfig
    plan: SearchPlan
    files: SearchFiles


def run(arguments: argparse.Namespace) -> int:
    """Search, go on with an earlier search of the same request, or just report it where nothing is left to do."""
    check_flags(arguments)
    search = prepare(arguments)
    done = len(search.files.read_trials())
    say(f"{'going on with' if done else 'trials are kept in'} {search.files.root}{f': {done} done' if done else ''}")
    code = follow(search) if has_work(search) else ExitCode.OK
    if code == ExitCode.STOPPED:
        say(f"stopped; finished trials are kept, go on with: {torch_process.repeat_command()}")
    elif code > 128:
        say(f"the search was ended by signal {code - 128}; go on with: {torch_process.repeat_command()}")
    if code != ExitCode.OK:
        return code
    best = best_of(search.files.read_trials())
    saved = None
    if best is not None and arguments.save_preset is not None:
        saved = save(arguments, search, best.lr)
    print_report(search.plan, search.files, saved, is_twin=search.config.is_cpu_twin, as_json=arguments.json)
    if best is None:
        say("gpuworkbench: every rate diverged; look at the data and the model, or try --lrs with lower ones")
        return ExitCode.FAILED
    return ExitCode.OK


def check_flags(arguments: argparse.Namespace) -> None:
    """UsageError for combinations that mean nothing, ConfigError for a preset's name that cannot be saved."""
    ends = [flag for flag, value in (("--min", arguments.lr_min), ("--max", arguments.lr_max)) if value is not None]
    if arguments.lrs is not None and (ends or arguments.points is not None):
        raise UsageError("--lrs names the rates, --min, --max and --points make a grid", "give one or the other")
    if len(ends) == 1 or (arguments.points is not None and not ends):
        raise UsageError("a grid needs both of its ends", "give --min LR --max LR, or neither for a range test")
    if ends and not arguments.lr_min < arguments.lr_max:
        raise UsageError(f"--min {arguments.lr_min:g} is not below --max {arguments.lr_max:g}", "exchange them")
    if arguments.bench_force and arguments.save_preset is None:
        raise UsageError("--force is for --save-preset", "leave it out")
    if arguments.save_preset is not None:
        own_preset_path(
            arguments.save_preset,
            overwrite=arguments.bench_force,
            instead="choose another name, or replace it with --force",
        )


def prepare(arguments: argparse.Namespace) -> Search:
    """The checked request. Raises every kind of refusal."""
    sets = tuple(parse_set(text) for text in arguments.bench_sets)
    for override in sets:
        if override.key in ("optimizer.lr", "train.max_steps"):
            flag = "--lrs" if override.key == "optimizer.lr" else "--steps"
            raise UsageError(f"--set {override.key} is what a search decides", f"use {flag}")
    place = Path(arguments.out).expanduser().absolute() if arguments.out else Path.cwd()
    request = LaunchRequest(
        preset=arguments.bench_preset, runs_dir=place, sets=sets, cpu_twin=arguments.bench_cpu_twin, environ=os.environ
    )
    prepared = check(request, on_progress=StageProgress(), on_weights=StageProgress("weights"))
    full_steps = prepared.config.train.max_steps
    assert full_steps is not None
    steps = arguments.bench_steps or min(full_steps, DEFAULT_STEPS)
    config = trial_config(prepared.config, steps, {override.key for override in sets})
    check_eval_tokens(config, prepared.data.n_val_tokens)
    if arguments.seeds > 1 and config.train.init_from and not config.model.dropout:
        raise UsageError(
            f"--seeds {arguments.seeds}: from published weights without dropout every seed is the same training",
            "leave --seeds out, or --set model.dropout=0.1",
        )
    grid = arguments.lrs
    if arguments.lr_min is not None:
        grid = geometric_grid(arguments.lr_min, arguments.lr_max, arguments.points or DEFAULT_GRID_POINTS)
    plan = SearchPlan(
        preset=prepared.preset.name,
        label=f"{config.label}, {config.optimizer.name}",
        steps=steps,
        full_steps=full_steps,
        seeds=tuple(config.train.seed + index for index in range(arguments.seeds)),
        lr_range=spec_of(config.optimizer.name).lr_range,
        range_steps=min(RANGE_TEST_STEPS, steps),
        grid=grid,
        factor=factor_of(grid),
        adapts=arguments.lrs is None,
    )
    root = place if arguments.out else default_directory(plan, config)
    return Search(prepared, config, plan, open_search(root, plan, config))


def trial_config(config: RunConfig, steps: int, chosen: set[str]) -> RunConfig:
    """A run of `steps` steps with the whole schedule in it: its lengths, warm-up and warm-down, shrink with the run.

    Those that a --set chose stay as chosen. Validates at the end; nothing is saved and nothing sampled. Raises
    ConfigError where its validation is not possible.
    """
    replace = msgspec.structs.replace
    full_steps = config.train.max_steps
    assert full_steps is not None
    schedule = config.schedule
    for key in schedule.__struct_fields__:
        if key.endswith(("_steps", "_tokens")) and f"schedule.{key}" not in chosen:
            length = getattr(schedule, key)
            least = int(length > 0 and key.endswith("_tokens"))  # 0 tokens would switch a curriculum off by half
            schedule = replace(schedule, **{key: max(round(length * steps / full_steps), least)})
    changed = replace(
        config,
        train=replace(config.train, max_steps=steps, max_epochs=None),
        schedule=schedule,
        eval=replace(config.eval, interval_steps=steps),
        sample=replace(config.sample, interval_steps=0),
        early_stopping=replace(config.early_stopping, patience=0),
    )
    return build(as_table(changed), "the trial")


def factor_of(grid: tuple[float, ...] | None) -> float:
    """What a grid multiplies by from one rate to the next."""
    if grid is None or len(grid) < 2:
        return 2.0
    factor: float = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1))
    return factor


def has_work(search: Search) -> bool:
    """Whether a trial or the range test is still to do."""
    test = search.files.read_range_test()
    if search.plan.grid is None and test is None:
        return True
    return bool(next_trials(search.plan, test, search.files.read_trials()))


def follow(search: Search) -> int:
    """Run the searching process and say how far it is; returns its exit code, STOPPED after Ctrl-C or SIGTERM."""
    command = torch_command("gpuworkbench.tools.bench_lr", str(search.files.root))
    return torch_process.follow(command, Talk().hear)


class Talk:
    """Progress on stderr: a line for each finished trial, and every two seconds where a trial is."""

    def __init__(self) -> None:
        self._said_s = -SAY_INTERVAL_S
        self._what = ""
        self._first = (0, 0.0)  # step and time at the first progress of the trial under way
        self._step_time_s: float | None = None

    def hear(self, message: dict[str, Any]) -> None:
        """One line of the searching process."""
        if "what" not in message:
            result = message["diverged"] or f"validation loss {format_number(message['val_loss'])}"
            say(f"lr {message['lr']:g}, seed {message['seed']}: {result} ({format_duration(message['seconds'])})")
            return
        now = time.monotonic()
        if message["what"] != self._what:
            self._what, self._first = message["what"], (message["step"], now)
        first_step, since = self._first
        if message["step"] > first_step:
            self._step_time_s = (now - since) / (message["step"] - first_step)
        if now - self._said_s >= SAY_INTERVAL_S:
            self._said_s = now
            say(self._line(message))

    def _line(self, message: dict[str, Any]) -> str:
        if not message["steps"]:
            return str(message["what"])
        line = f"{message['what']}: step {message['step']}/{message['steps']}"
        if message["loss"] is not None:
            line += f"  loss {format_number(message['loss'])}"
        if self._step_time_s is not None:
            left = message["steps"] - message["step"] + message["steps_after"]
            line += f"  about {format_duration(left * self._step_time_s)} for all"
        return line


def save(arguments: argparse.Namespace, search: Search, lr: float) -> Path:
    """Write the tuned preset. Raises ConfigError."""
    sets = [parse_set(text) for text in arguments.bench_sets]
    plan = search.plan
    how = f"lr {lr:g} found by `bench lr`: {plan.steps} steps, {len(plan.seeds)} seed(s), {time.strftime('%Y-%m-%d')}"
    before = search.prepared.preset.config.description
    description = f"{before[: 390 - len(how)]}; {how}" if before else how
    try:
        changes = [*sets, Override("optimizer.lr", lr, "bench lr")]
        of_full, of_twin = ([], changes) if search.config.is_cpu_twin else (changes, [])
        text = own_preset(search.prepared.preset, of_full, of_twin, description)
        return save_own_preset(arguments.save_preset, text, overwrite=arguments.bench_force)
    except ConfigError as error:
        raise ConfigError(f"the best rate is {lr:g}, but {error.message}", error.hint) from None
