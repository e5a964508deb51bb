"""`gpuworkbench plan`: what a run will take, by part, and whether it fits; other ways where it does not."""

from __future__ import annotations

import argparse
import os
import sys

import msgspec

from gpuworkbench.commands.output import print_json, print_table, say, tell
from gpuworkbench.config.loader import parse_set
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError, ExitCode, UsageError
from gpuworkbench.gpu.host import cpu_name, probe_host
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.headless.plan_lines import plan_lines
from gpuworkbench.headless.terminal import terminal_width
from gpuworkbench.launch.micro_batch import largest_micro_batch, remembered_line
from gpuworkbench.launch.planner import probed, traced
from gpuworkbench.launch.resume import changed_config, run_config
from gpuworkbench.plan.analytic import Estimate, Verdict, estimate
from gpuworkbench.plan.calibration import Calibration, calibrate, read_records
from gpuworkbench.plan.fit_me import Alternative
from gpuworkbench.plan.micro_batch import micro_batch_path, read_micro_batch
from gpuworkbench.plan.report import Plan, as_json, make_plan
from gpuworkbench.plan.targets import Target, parse_size, target_of
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.runs.paths import runs_dir
from gpuworkbench.runs.store import resolve_run
from gpuworkbench.text import safe_text
from gpuworkbench.units import format_bytes


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; exit 0 where it fits (tightly too), 4 where it does not. Raises UserErrors, DoesNotFitError."""
    config, notes = configured(arguments)
    host = probe_host()
    target = target_of(config, arguments.card, probe_cards(), host, runs_dir(arguments.runs_dir))
    if arguments.plan_largest:
        return search(config, target, arguments)
    if arguments.within is not None:
        raise UsageError("--within limits the search of --largest-micro-batch", "add that, or use --card SIZE")
    remembered = remembered_line(config, target)
    notes += [remembered] if remembered else []
    predicted = predict(config, target, arguments.tier)
    plan = make_plan(
        config,
        target,
        predicted,
        tier=arguments.tier,
        calibration=learnt(config, target),
        wants_alternatives=arguments.fit,
        tokens=arguments.tokens,
        is_wsl=host.is_wsl,
        notes=notes,
    )
    if arguments.json:
        print_json(as_json(plan))
    else:
        show(plan)
    return ExitCode.DOES_NOT_FIT if plan.verdict is Verdict.DOES_NOT_FIT else ExitCode.OK


def search(config: RunConfig, target: Target, arguments: argparse.Namespace) -> int:
    """Print the largest micro-batch that fits, searched for or remembered. Raises UsageError, DoesNotFitError."""
    within = None if arguments.within is None else parse_size(arguments.within, "--within")
    is_known = read_micro_batch(config, target, within) is not None
    found = largest_micro_batch(config, target, say, within_bytes=within)
    path = micro_batch_path(config, target, within)
    if arguments.json:
        print_json({"preset": config.label, **msgspec.to_builtins(found), "sets": found.sets, "file": str(path)})
        return ExitCode.OK
    needed, limit = format_bytes(found.needed_bytes), format_bytes(found.limit_bytes)
    tell(f"{safe_text(config.label)}: micro-batch {found.micro_batch_size} x {found.grad_accum_steps}, {needed}")
    tell(f"the largest that fits {limit} of {target.label}, the tokens of a step kept: {found.flags}")
    tell(f"{'remembered' if is_known else 'kept'} in {path}; without that file it is searched for again")
    return ExitCode.OK


def configured(arguments: argparse.Namespace) -> tuple[RunConfig, list[str]]:
    """The configuration to plan, its vocabulary known, and what to say about it. Raises UsageError, ConfigError."""
    if (arguments.plan_run is None) == (arguments.plan_preset is None):
        raise UsageError("plan takes a preset or a run", "try `gpuworkbench plan --preset rtx5080_1b`")
    sets = tuple(parse_set(text) for text in arguments.plan_sets)
    if arguments.plan_run is not None:
        if arguments.plan_cpu_twin:
            raise UsageError("--cpu-twin is for a preset", "a run stays what it is")
        paths = resolve_run(runs_dir(arguments.runs_dir), arguments.plan_run)
        config = changed_config(run_config(paths), sets, None, os.environ, paths.tokenizer)
    else:
        preset = load_preset(arguments.plan_preset)
        config = configure(preset, sets=sets, environ=os.environ, cpu_twin=arguments.plan_cpu_twin)
    notes = []
    if config.has_open_sizes:
        notes.append("the model's sizes are those of the weights it starts from; planned with the ones written here")
    known = with_known_vocabulary(config)
    if known is None:
        raise ConfigError(
            f"data.tokenizer = {config.data.tokenizer!r}: its vocabulary is known once the data is prepared",
            "plan with --set model.vocab_size=N",
        )
    return known, notes


def predict(config: RunConfig, target: Target, tier: str) -> Estimate:
    """The estimate of a tier. Raises DoesNotFitError where a probe runs out of memory, WorkbenchError for a failure."""
    predicted = estimate(config, kind=target.kind)
    assert predicted is not None  # the vocabulary is known
    if tier == "trace":
        return traced(config, predicted, target)
    return probed(config, predicted, target, say) if tier == "probe" else predicted


def learnt(config: RunConfig, target: Target) -> Calibration | None:
    """What finished runs on the target say; nothing about a card that is not here."""
    if target.kind == "cuda" and target.card is None:
        return None
    device = cpu_name() if target.kind == "cpu" else target.card_name
    simulated = config.device.memory_limit_gib is not None
    return calibrate(config, target.kind, device or "", read_records(), simulated=simulated)


def show(plan: Plan) -> None:
    """The plan for people: as wide as the terminal is, a bar in blocks where its encoding has them."""
    width = terminal_width() if sys.stdout.isatty() else 80
    for line in plan_lines(plan, width, is_unicode=_has_blocks(sys.stdout.encoding)):
        tell(line)
    if plan.alternatives:
        tell("")
        tell(_heading(plan))
        print_table(["MEMORY", "", "HOST", "STEP TIME", "FLAGS"], [_row(each) for each in plan.alternatives], [0, 2, 3])
        tell("Step times are predicted from FLOPs and bytes, against this configuration's.")
    elif plan.verdict is Verdict.DOES_NOT_FIT:
        tell("")
        tell("No other way to make the same step was found.")


def _heading(plan: Plan) -> str:
    if all(each.verdict is Verdict.DOES_NOT_FIT for each in plan.alternatives):
        least = min(each.total_bytes for each in plan.alternatives)
        short = least - (plan.target.limit_bytes or 0)
        missing = f", {format_bytes(short)} more than there are" if plan.target.limit_bytes and short > 0 else ""
        return f"Nothing fits. The smallest ways to make the same step take {format_bytes(least)}{missing}:"
    return "Fit me: other ways to make the same step, the cheapest first"


def _row(way: Alternative) -> list[str]:
    return [
        format_bytes(way.total_bytes),
        way.verdict.label,
        format_bytes(way.host_bytes),
        f"x{way.slowdown:.2f}",
        way.flags,
    ]


def _has_blocks(encoding: str | None) -> bool:
    try:
        "█░".encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
