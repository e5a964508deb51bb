"""`gpuworkbench bench WHAT`: measurements on this machine. A measurement is added by one line in BENCHES.

Nothing but the standard library is imported here: the command line is described before anything is loaded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

from gpuworkbench import registry

MAX_RATE = 1e6
MAX_RATES = 64
MAX_SEEDS = 64
MAX_BUDGETS = 16


class Bench(NamedTuple):
    """What a measurement does, "module:function(arguments) -> exit code", and its own arguments."""

    help: str
    handler: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


def run(arguments: argparse.Namespace) -> int:
    """Run the measurement that was asked for; returns its exit code."""
    code: int = registry.load(BENCHES[arguments.bench].handler)(arguments)
    return code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The measurements as commands of `bench`."""
    commands = parser.add_subparsers(
        title="measurements", metavar="WHAT", dest="bench", required=True, parser_class=type(parser)
    )
    for name, bench in BENCHES.items():
        command = commands.add_parser(name, help=bench.help, description=bench.help, allow_abbrev=False)
        bench.add_arguments(command)


def _add_preset(
    parser: argparse.ArgumentParser, title: str, set_help: str = "override a key (repeatable)"
) -> argparse._ArgumentGroup:
    """The flags that every measurement has. Their names in the namespace are not those of the training flags."""
    what = parser.add_argument_group(title)
    what.add_argument("--preset", dest="bench_preset", required=True, metavar="NAME", help="a preset, or a .toml file")
    what.add_argument("--cpu-twin", dest="bench_cpu_twin", action="store_true", help="the preset's stand-in on the CPU")
    what.add_argument("--set", dest="bench_sets", action="append", default=[], metavar="KEY=VALUE", help=set_help)
    return what


def add_lr(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench lr`."""
    what = _add_preset(parser, "what to train")
    what.add_argument("--steps", dest="bench_steps", type=_count, metavar="N", help="steps of a trial (at most 200)")
    rates = parser.add_argument_group("which rates (default: around what a range test finds)")
    rates.add_argument("--lrs", type=_rates, metavar="A,B,...", help="exactly these")
    rates.add_argument("--min", dest="lr_min", type=_rate, metavar="LR", help="the lowest of a geometric grid")
    rates.add_argument("--max", dest="lr_max", type=_rate, metavar="LR", help="the highest of it")
    rates.add_argument("--points", type=_count, metavar="N", help="how many rates from --min to --max (7)")
    rates.add_argument("--seeds", type=_seeds, default=1, metavar="N", help="trials of each rate (1)")
    result = parser.add_argument_group("the result")
    result.add_argument("--save-preset", metavar="NAME", help="write the preset with the best rate to your own presets")
    result.add_argument("--force", dest="bench_force", action="store_true", help="with --save-preset: replace NAME")
    result.add_argument("--out", metavar="DIR", help="keep the trials there (default: in the user's data directory)")
    result.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object on stdout")


def add_memory(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench memory`."""
    what = _add_preset(parser, "what to measure")
    what.add_argument(
        "--case", dest="bench_cases", action="append", metavar="NAME", help="only this strategy or combination, by name"
    )
    what.add_argument("--steps", dest="bench_steps", type=_count, metavar="N", help="steps to compare losses at (30)")
    what.add_argument("--rounds", type=_count, default=3, metavar="N", help="rounds of step times over all cases (3)")
    result = parser.add_argument_group("the result")
    result.add_argument("--out", metavar="FILE", help="store the result there, as JSON")
    result.add_argument("--snapshot", metavar="FILE", help="the allocation profile of one case, as .json or .csv")
    result.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object on stdout")


def add_hybrid(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench hybrid`."""
    what = _add_preset(parser, "what to train", "override a key in every arm")
    what.add_argument("--seeds", type=_paired_seeds, default=5, metavar="N", help="measured seeds (5; a claim needs 5)")
    what.add_argument(
        "--budgets", type=_budgets, metavar="A,B,C,D", help="steps of a run (half to 1.4 times the preset's)"
    )
    what.add_argument("--reference", type=_count, metavar="N", help="the budget that sets the target (second longest)")
    what.add_argument("--arms", type=_names, metavar="A,B,...", help="which of the arms there are (all)")
    what.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=ARM,KEY=VALUE,...",
        help="an arm with other keys",
    )
    tuning = parser.add_argument_group("the baseline (default: rate and schedule tuned on other seeds)")
    tuning.add_argument("--untuned", action="store_true", help="the preset as it is")
    tuning.add_argument("--lrs", type=_rates, metavar="A,B,...", help="exactly these rates, with each schedule")
    tuning.add_argument("--schedules", type=_names, metavar="A,B,...", help="these (linear,cosine,warmup_stable_decay)")
    tuning.add_argument("--tuning-seeds", type=_seeds, default=1, metavar="N", help="seeds of the tuning (1)")
    result = parser.add_argument_group("the result")
    result.add_argument("--out", metavar="FILE", help="the result as FILE.json, its pictures beside it")
    result.add_argument("--dir", metavar="DIR", help="keep the trials there (default: in the user's data directory)")
    result.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object on stdout")


BENCHES: dict[str, Bench] = {
    "lr": Bench("find the learning rate of a preset", "gpuworkbench.commands.bench_lr:run", add_lr),
    "memory": Bench("compare the memory strategies", "gpuworkbench.commands.bench_memory:run", add_memory),
    "hybrid": Bench(
        "does predicted progress pay: the hybrid trainer against plain training",
        "gpuworkbench.commands.bench_hybrid:run",
        add_hybrid,
    ),
}


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number from 1 on")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a learning rate: a number above 0")
    return value


def _seeds(text: str) -> int:
    value = _count(text)
    if value > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"{value} seeds are more than {MAX_SEEDS}")
    return value


def _paired_seeds(text: str) -> int:
    value = _seeds(text)
    if value < 2:
        raise argparse.ArgumentTypeError("one seed has no interval: give 2 or more, 5 for a claim")
    return value


def _budgets(text: str) -> tuple[int, ...]:
    budgets = tuple(sorted({_count(part) for part in text.split(",")}))
    if len(budgets) > MAX_BUDGETS:
        raise argparse.ArgumentTypeError(f"{len(budgets)} budgets are more than {MAX_BUDGETS}")
    return budgets


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a list of names")
    return names


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(sorted({_rate(part) for part in text.split(",")}))
    if len(rates) > MAX_RATES:
        raise argparse.ArgumentTypeError(f"{len(rates)} rates are more than {MAX_RATES}")
    return rates
