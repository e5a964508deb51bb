"""`gpuworkbench bench memory`: each memory strategy of a preset alone and in combination, measured in a subprocess."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from gpuworkbench import registry
from gpuworkbench.commands import torch_process
from gpuworkbench.commands.bench_lr import trial_config
from gpuworkbench.commands.output import print_json, print_table, say, tell
from gpuworkbench.commands.progress import StageProgress
from gpuworkbench.config.loader import parse_set
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.errors import ExitCode, RunError, UsageError
from gpuworkbench.io import atomic_write_bytes, atomic_write_json, read_regular_file
from gpuworkbench.launch.create import LaunchRequest, check
from gpuworkbench.launch.spawn import torch_command
from gpuworkbench.plan.memory_bench import BenchPlan, BenchResult, CaseResult
from gpuworkbench.plan.memory_cases import AS_CONFIGURED, CASES, PLAIN, Planned, planned
from gpuworkbench.units import NOT_AVAILABLE, format_bytes, format_duration

DEFAULT_STEPS = 30
TIMED_STEPS = 5
VIRTUAL_STEPS = 5
MAX_RESULT_BYTES = 16 * 1024 * 1024


def run(arguments: argparse.Namespace) -> int:
    """Measure, print a table, store what was asked for."""
    names = case_names(arguments.bench_cases)
    for path in (arguments.out, arguments.snapshot):
        if path is not None and not Path(path).expanduser().absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no such folder", "make it first, or name another")
    sets = tuple(parse_set(text) for text in arguments.bench_sets)
    request = LaunchRequest(
        preset=arguments.bench_preset,
        runs_dir=Path.cwd(),
        sets=sets,
        cpu_twin=arguments.bench_cpu_twin,
        environ=os.environ,
        allows_idle=True,  # a predicted stretch is measured whether or not the preset predicts
    )
    prepared = check(request, on_progress=StageProgress(), on_weights=StageProgress("weights"))
    steps = arguments.bench_steps or DEFAULT_STEPS
    config = trial_config(prepared.config, steps, {override.key for override in sets})
    cases = list(planned(config, names))
    plan = plan_of(arguments, prepared.preset.name, config, steps, cases)
    with tempfile.TemporaryDirectory(prefix="gpuworkbench-bench-") as folder:
        write_plan(Path(folder), plan, cases)
        command = torch_command("gpuworkbench.tools.bench_memory", folder)
        code = torch_process.follow(command, lambda message: say(message["what"]))
        if code == ExitCode.STOPPED:
            say("stopped; nothing is kept")
        elif code > 128:
            say(f"the measurement was ended by signal {code - 128}")
        if code != ExitCode.OK:
            return code
        data = read_regular_file(Path(folder) / "result.json", MAX_RESULT_BYTES)
    measured = msgspec.json.decode(data, type=BenchResult)
    result = with_refusals(measured, cases)
    if arguments.out is not None:
        store(Path(arguments.out).expanduser(), result)
    print_report(result, as_json=arguments.json)
    return ExitCode.OK


def case_names(wanted: list[str] | None) -> frozenset[str] | None:
    """The cases asked for; None is all. Raises UsageError for an unknown one."""
    known = [case.name for case in CASES] + [AS_CONFIGURED]
    for name in wanted or ():
        if name not in known:
            close = registry.nearest(name, known)
            suggestion = f"did you mean {close!r}? " if close else ""
            raise UsageError(f"--case {name[:80]!r} is not known", f"{suggestion}choices: {', '.join(known)}")
    return None if wanted is None else frozenset(wanted)


def plan_of(
    arguments: argparse.Namespace, preset: str, config: RunConfig, steps: int, cases: list[Planned]
) -> BenchPlan:
    """What the subprocess is to do. The profile is of the last case: as configured, or the one asked for."""
    names = tuple(case.name for case in cases if case.config is not None)
    return BenchPlan(
        preset=preset,
        label=config.label,
        steps=steps,
        rounds=arguments.rounds,
        timed_steps=TIMED_STEPS,
        virtual_steps=VIRTUAL_STEPS,
        cases=names,
        snapshot=None if arguments.snapshot is None else str(Path(arguments.snapshot).expanduser().absolute()),
        snapshot_case=names[-1],
    )


def write_plan(folder: Path, plan: BenchPlan, cases: list[Planned]) -> None:
    """plan.json, and a file for each case's configuration. Raises RunError."""
    try:
        atomic_write_json(folder / "plan.json", plan)
        configs = [case.config for case in cases if case.config is not None]
        for number, config in enumerate(configs):
            atomic_write_bytes(folder / f"case-{number}.toml", dump_toml(config))
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}", "check the disk") from None


def with_refusals(result: BenchResult, cases: list[Planned]) -> BenchResult:
    """The result in the order of the cases, with their keys, those that cannot be measured among them."""
    measured = {case.name: case for case in result.cases}
    complete = [
        msgspec.structs.replace(
            measured.get(case.name, CaseResult(name=case.name, changed={}, refused=case.refused)), changed=case.changed
        )
        for case in cases
    ]
    return msgspec.structs.replace(result, cases=tuple(complete))


def store(path: Path, result: BenchResult) -> None:
    """Raises RunError."""
    try:
        atomic_write_json(path, result)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}", "check the disk") from None


def print_report(result: BenchResult, *, as_json: bool) -> None:
    """The whole result on stdout."""
    if as_json:
        print_json(result)
        return
    plan = result.plan
    what = "allocator" if result.memory == "allocator" else "tensor bytes on the CPU"
    tell(f"{plan.label} on {result.device}: peak memory by {what}; loss after {plan.steps} steps; {plan.rounds} rounds")
    plain = next(case for case in result.cases if case.name == PLAIN)
    header = ["CASE", "FULL", "PREDICT", "BELOW FULL", "STEP", "SWITCH", "MOVED", "HIDDEN", "LOSS", ""]
    print_table(header, [row(case, plain) for case in result.cases], right=range(1, 9))


def row(case: CaseResult, plain: CaseResult) -> list[str]:
    """One case: peaks, its own predicted peak below its full one, times, transfers, loss against plain's."""
    if case.refused:
        return [case.name, *[""] * 8, case.refused]
    full, predict = case.peak_full_bytes, case.peak_predict_bytes
    hidden = f"{case.offload_hidden_s / case.offload_s:.0%}" if case.offload_s else ""
    return [
        case.name,
        _against(full, plain.peak_full_bytes),
        format_bytes(predict),
        f"{1 - predict / full:.0%}" if full and predict is not None else NOT_AVAILABLE,
        NOT_AVAILABLE if case.step_time_ratio is None else f"{case.step_time_ratio:.2f}x",
        format_duration(case.switch_s),
        format_bytes(case.offloaded_bytes) if case.offloaded_bytes else "",
        hidden,
        _loss(case, plain),
        case.diverged,
    ]


def _against(num_bytes: int | None, plain: int | None) -> str:
    share = f" {num_bytes / plain:>5.0%}" if num_bytes is not None and plain else ""
    return f"{format_bytes(num_bytes)}{share}"


def _loss(case: CaseResult, plain: CaseResult) -> str:
    if case.val_loss is None or plain.val_loss is None:
        return NOT_AVAILABLE
    if case is plain:
        return f"{case.val_loss:.4f}"
    difference: Any = case.val_loss - plain.val_loss
    return "same" if difference == 0 else f"{difference:+.4f}"
