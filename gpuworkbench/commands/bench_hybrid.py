"""`gpuworkbench bench hybrid`: every predictor and control against the tuned baseline, on the same seeds.

Here: the request, checked as a whole before anything is written, and the process that trains. What is trained next and
what the trials say is in `plan`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpuworkbench import registry
from gpuworkbench.commands.bench_hybrid_report import print_report, result_of, write_result
from gpuworkbench.commands.bench_hybrid_talk import Talk
from gpuworkbench.commands.output import say
from gpuworkbench.commands.progress import StageProgress
from gpuworkbench.commands.torch_process import follow, repeat_command
from gpuworkbench.config.loader import Override, parse_set
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import check_eval_tokens
from gpuworkbench.errors import ExitCode, UsageError
from gpuworkbench.launch.create import LaunchRequest, Prepared, check
from gpuworkbench.launch.spawn import torch_command
from gpuworkbench.plan.hybrid_bench import (
    BASELINE,
    CONTROLS,
    EMA,
    EMA_DECAY,
    GRID_FACTOR,
    MIN_BUDGETS,
    PRESET,
    TUNED_SCHEDULES,
    Arm,
    BenchPlan,
    Tuned,
    Value,
    Work,
    grid_around,
    next_trials,
    steps_left,
)
from gpuworkbench.plan.hybrid_bench_files import BenchFiles, default_directory, open_bench
from gpuworkbench.plan.hybrid_configs import JUMPS_AS_IT_IS, arm_config

BUDGET_SHARES = (0.5, 0.7071, 1.0, 1.4142)  # of the preset's steps
TUNING_SEED_OFFSET = 10_000
ARM_NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
DECIDED_HERE = {
    "train.max_steps": "--budgets",
    "train.max_epochs": "--budgets",
    "hybrid.enabled": "--arms",
    "hybrid.predictor": "--arms",
}


class Comparison(NamedTuple):
    """A checked request, and where its results are."""

    config: RunConfig
    plan: BenchPlan
    files: BenchFiles

    @property
    def preset(self) -> Tuned:
        """The preset's own schedule and rate."""
        return Tuned(self.config.schedule.name, self.config.optimizer.lr, None)


def run(arguments: argparse.Namespace) -> int:
    """Compare, go on with an earlier comparison of the same request, or just report it where nothing is left to do."""
    comparison = prepare(arguments)
    files, plan = comparison.files, comparison.plan
    done = len(files.read_trials())
    say(f"{'going on with' if done else 'trials are kept in'} {files.root}{f': {done} done' if done else ''}")
    say(f"decided beforehand: {files.preregistration.name}, sha256 {files.preregistration_sha256()[:16]}...")
    code: int = ExitCode.OK
    if next_trials(plan, comparison.preset, files.read_trials()):
        left = steps_left(plan, comparison.preset, files.read_trials())
        say(f"{len(plan.arms)} arms, {len(plan.seeds)} seeds, budgets of {plan.budgets}: about {left:,} steps to train")
        code = follow(torch_command("gpuworkbench.tools.bench_hybrid", str(files.root)), Talk().hear)
    if code == ExitCode.STOPPED:
        say(f"stopped; finished trials are kept, go on with: {repeat_command()}")
    elif code > 128:
        say(f"the comparison was ended by signal {code - 128}; go on with: {repeat_command()}")
    if code != ExitCode.OK:
        return code
    sets = {override.key: override.value for override in map(parse_set, arguments.bench_sets)}
    result = result_of(plan, files, comparison.preset, sets)
    if result["tuned"] is None:
        say("gpuworkbench: every rate of the baseline diverged; try --lrs with lower ones")
        return ExitCode.FAILED
    written = write_result(result, Path(arguments.out).expanduser() if arguments.out else files.root / "result.json")
    print_report(result, written, as_json=arguments.json)
    return ExitCode.OK


def prepare(arguments: argparse.Namespace) -> Comparison:
    """The checked request. Raises every kind of refusal, before anything is written but the data cache."""
    sets = tuple(parse_set(text) for text in arguments.bench_sets)
    for override in sets:
        if override.key in DECIDED_HERE:
            raise UsageError(f"--set {override.key} is what a comparison decides", f"use {DECIDED_HERE[override.key]}")
        if override.key in JUMPS_AS_IT_IS:
            what = f"--set {override.key} has no effect: an arm, such as a control, is its predictor alone"
            raise UsageError(what, "give it to an arm of your own: --arm NAME=ARM,hybrid.bandit=true")
    if arguments.untuned and (arguments.lrs is not None or arguments.schedules is not None):
        raise UsageError("--untuned tunes nothing, --lrs and --schedules are for tuning", "give one or the other")
    for name in arguments.schedules or ():
        registry.lookup(registry.SCHEDULES, name, "--schedules")
    place = Path(arguments.dir).expanduser().absolute() if arguments.dir else Path.cwd()
    request = LaunchRequest(
        preset=arguments.bench_preset,
        runs_dir=place,
        sets=sets,
        cpu_twin=arguments.bench_cpu_twin,
        environ=os.environ,
        allows_idle=True,  # arms decide what is predicted, and by which predictor
    )
    refuse_out(arguments.out)
    arms = chosen_arms(arguments.arms, arguments.arm, is_tuned=not arguments.untuned)
    prepared = check(request, on_progress=StageProgress(), on_weights=StageProgress("weights"))
    plan = make_plan(arguments, prepared, arms)
    for arm in arms:
        for steps in plan.budgets:
            work = Work(arm.name, plan.seeds[0], steps, prepared.config.optimizer.lr, prepared.config.schedule.name)
            check_eval_tokens(arm_config(prepared.config, arm, work), prepared.data.n_val_tokens)
    root = place if arguments.dir else default_directory(plan, prepared.config)
    return Comparison(prepared.config, plan, open_bench(root, plan, prepared.config))


def make_plan(arguments: argparse.Namespace, prepared: Prepared, arms: tuple[Arm, ...]) -> BenchPlan:
    """Seeds, budgets and the tuning, with what a person left open. Raises UsageError."""
    config = prepared.config
    full = config.train.max_steps
    assert full is not None
    budgets = arguments.budgets or tuple(sorted({max(round(full * share), 1) for share in BUDGET_SHARES}))
    if len(budgets) < MIN_BUDGETS:
        raise UsageError(f"{len(budgets)} budgets are too few", f"give {MIN_BUDGETS} different ones or more")
    reference = arguments.reference or budgets[-2]
    if reference not in budgets:
        shown = ", ".join(str(steps) for steps in budgets)
        raise UsageError(f"--reference {reference} is not one of the budgets {shown}", "add it, or choose one of them")
    if config.train.init_from and not config.model.dropout:
        say("note: from published weights without dropout, seeds differ in the order of the data only")
    first = config.train.seed
    return BenchPlan(
        preset=prepared.preset.name,
        label=config.label,
        optimizer=config.optimizer.name,
        seeds=tuple(first + index for index in range(arguments.seeds)),
        tuning_seeds=tuple(first + TUNING_SEED_OFFSET + index for index in range(arguments.tuning_seeds)),
        budgets=budgets,
        reference=reference,
        schedules=() if arguments.untuned else arguments.schedules or TUNED_SCHEDULES,
        rates=arguments.lrs or grid_around(config.optimizer.lr),
        rate_factor=GRID_FACTOR,
        adapts=arguments.lrs is None,
        arms=arms,
        has_clock=config.train.mode == "fast",
    )


def builtin_arms(*, is_tuned: bool) -> dict[str, Arm]:
    """Every arm that has a name of its own. Where nothing is tuned the preset is the baseline."""
    arms = [Arm(name=BASELINE, what="the tuned baseline" if is_tuned else "the preset as it is", is_tuned=is_tuned)]
    if is_tuned:
        arms.append(Arm(name=PRESET, what="the preset's own rate and schedule", is_tuned=False))
    arms.append(
        Arm(
            name=EMA,
            what="the baseline, judged by an average of its weights",
            judged_by_average=True,
            sets={"hybrid.ema_eval_decay": EMA_DECAY},
        )
    )
    names = [*CONTROLS, *(name for name in registry.PREDICTORS if name not in CONTROLS)]
    for name in names:
        what = f"the control {name}" if name in CONTROLS else f"the predictor {name}"
        sets: dict[str, Value] = {"hybrid.predictor": name}
        if name == "learned":
            sets["hybrid.dynamics"] = True  # which it reads
        arms.append(Arm(name=name, what=what, is_hybrid=True, sets=sets))
    return {arm.name: arm for arm in arms}


def chosen_arms(names: Sequence[str] | None, own: Sequence[str], *, is_tuned: bool) -> tuple[Arm, ...]:
    """The baseline first, then the arms that were asked for (default: all), then a person's own. Raises UsageError."""
    builtin = builtin_arms(is_tuned=is_tuned)
    for number, name in enumerate(names or ()):
        if name == PRESET and not is_tuned:
            raise UsageError(f"--arms {PRESET}: with --untuned the preset is the baseline", "leave it out")
        registry.lookup(builtin, name, "--arms")
        if name in (names or ())[:number]:
            raise UsageError(f"--arms names {name} twice", "name each arm once")
    arms = {BASELINE: builtin[BASELINE]} | {name: builtin[name] for name in names or builtin}
    for text in own:
        arm = own_arm(text, builtin)
        if arm.name in arms or arm.name in builtin:
            raise UsageError(f"--arm {arm.name}: there is an arm of that name", "give another name")
        arms[arm.name] = arm
    return tuple(arms.values())


def own_arm(text: str, builtin: dict[str, Arm]) -> Arm:
    """`NAME=ARM[,KEY=VALUE...]`: an arm with keys on top. Raises UsageError, ConfigError."""
    name, _, rest = text.partition("=")
    base_name, *pairs = rest.split(",")
    if not ARM_NAME.fullmatch(name) or base_name not in builtin:
        raise UsageError(
            f"--arm {text[:80]!r} is not NAME=ARM,KEY=VALUE,...",
            f"NAME of letters, digits and _, ARM one of {', '.join(builtin)}",
        )
    base = builtin[base_name]
    sets: dict[str, Value] = dict(base.sets)
    for pair in pairs:
        override: Override = parse_set(pair)
        if override.key in DECIDED_HERE or override.key in ("train.seed", "data.seed"):
            raise UsageError(f"--arm {name}: {override.key} is what a comparison decides", "leave it out")
        value: Any = override.value
        if not isinstance(value, (str, int, float)):
            raise UsageError(f"--arm {name}: {override.key} takes a plain value", "write KEY=VALUE")
        sets[override.key] = value
    what = f"{base.what}, with {', '.join(pairs)}" if pairs else base.what
    return Arm(
        name=name,
        what=what,
        is_tuned=base.is_tuned,
        is_hybrid=base.is_hybrid,
        judged_by_average=base.judged_by_average,
        sets=sets,
    )


def refuse_out(out: str | None) -> None:
    """UsageError where the result could not be written, before hours are spent."""
    if out is None:
        return
    path = Path(out).expanduser()
    if path.suffix != ".json":
        raise UsageError(f"--out {out}: the result is JSON", "give a name that ends in .json")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--out {out}: there is no directory for it", "make it first")
