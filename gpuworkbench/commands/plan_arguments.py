"""The arguments of `gpuworkbench plan`. Nothing heavy: `--help` is quick.

Their names in the namespace are not those of the training flags.
"""

from __future__ import annotations

import argparse

from gpuworkbench.commands.argument_types import token_count

TIERS = ("analytic", "trace", "probe")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but the flags that all commands have."""
    what = parser.add_argument_group("what to plan")
    what.add_argument("plan_run", metavar="RUN", nargs="?", help="a saved run: its id, a beginning of it, or a path")
    what.add_argument("--preset", dest="plan_preset", metavar="NAME", help="a preset's name, or a .toml file")
    what.add_argument("--cpu-twin", dest="plan_cpu_twin", action="store_true", help="the preset's stand-in on the CPU")
    what.add_argument(
        "--set", dest="plan_sets", action="append", default=[], metavar="KEY=VALUE", help="override a key (repeatable)"
    )
    how = parser.add_argument_group("how to plan it")
    how.add_argument(
        "--card",
        metavar="SIZE",
        default=None,
        help="16GiB, 8GiB, ... or this (default: the card here, or the preset's)",
    )
    how.add_argument(
        "--tier",
        choices=TIERS,
        default="analytic",
        help="formulas, a traced step, or two real steps on this machine (analytic)",
    )
    how.add_argument(
        "--largest-micro-batch",
        dest="plan_largest",
        action="store_true",
        help="search for the largest micro-batch that fits this device, by probes, and remember it",
    )
    how.add_argument("--within", metavar="SIZE", help="with --largest-micro-batch: less memory than the device has")
    how.add_argument("--fit", action="store_true", help="list other ways to make the same step even if it fits")
    how.add_argument(
        "--tokens", type=token_count, metavar="N", help="hours, energy and disk for so many tokens: 1e9, 10B, 1_000_000"
    )
