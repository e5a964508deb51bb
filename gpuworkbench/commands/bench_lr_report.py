"""What `bench lr` found: a curve of the range test, a table of the rates, and what to know before using the best."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpuworkbench.commands.output import print_json, print_table, tell
from gpuworkbench.plan.lr_search import (
    RangeTest,
    Rate,
    SearchPlan,
    best_of,
    has_diverged,
    lr_of_lowest_loss,
    notes,
    smoothed,
    summarize,
)
from gpuworkbench.plan.lr_search_files import SearchFiles
from gpuworkbench.units import NOT_AVAILABLE, format_number

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 50
BAR_WIDTH = 24


def print_report(plan: SearchPlan, files: SearchFiles, saved: Path | None, *, is_twin: bool, as_json: bool) -> None:
    """The whole result on stdout."""
    trials, test = files.read_trials(), files.read_range_test() if plan.grid is None else None
    if as_json:
        print_json(as_object(plan, files, saved))
        return
    tell(f"{plan.label}: {plan.steps} steps a trial, {len(plan.seeds)} seed(s)")
    if test is not None:
        for line in range_test_lines(test):
            tell(line)
    rates, best = summarize(trials), best_of(trials)
    print_table(["LR", "VAL LOSS", "SPREAD", ""], table_rows(rates, best), right=[0, 1, 2])
    if best is None:
        return
    tell(f"best: optimizer.lr = {best.lr:g}, validation loss {format_number(best.val_loss)} after {plan.steps} steps")
    for note in notes(plan, trials):
        tell(f"note: {note}")
    if saved is not None:
        twin = " --cpu-twin" if is_twin else ""
        tell(f"saved as {saved}; train it with: gpuworkbench --headless --preset {shlex.quote(saved.stem)}{twin}")


def as_object(plan: SearchPlan, files: SearchFiles, saved: Path | None) -> dict[str, Any]:
    """The result as `--json` prints it."""
    trials, test = files.read_trials(), files.read_range_test() if plan.grid is None else None
    best = best_of(trials)
    return {
        "preset": plan.preset,
        "path": str(files.root),
        "steps": plan.steps,
        "seeds": list(plan.seeds),
        "best": None if best is None else best._asdict(),
        "rates": [rate._asdict() for rate in summarize(trials)],
        "notes": notes(plan, trials),
        "range_test": test,
        "trials": trials,
        "saved_preset": None if saved is None else str(saved),
    }


def table_rows(rates: Sequence[Rate], best: Rate | None) -> list[list[str]]:
    """A row a rate: the better, the longer its bar."""
    losses = [rate.val_loss for rate in rates if rate.val_loss is not None]
    rows = []
    for rate in rates:
        if rate.val_loss is None:
            rows.append([f"{rate.lr:g}", NOT_AVAILABLE, "", f"diverged: {rate.diverged}"])
            continue
        span = max(losses) - min(losses)
        share = (max(losses) - rate.val_loss) / span if span else 1.0
        mark = "  best" if best is not None and rate.lr == best.lr else ""
        spread = format_number(rate.spread) if rate.n_seeds > 1 else NOT_AVAILABLE
        rows.append([f"{rate.lr:g}", format_number(rate.val_loss), spread, "█" * (1 + round(share * BAR_WIDTH)) + mark])
    return rows


def range_test_lines(test: RangeTest) -> list[str]:
    """The smoothed loss over the rate as blocks, and what was read off it."""
    curve = smoothed(test.losses)
    ended = "diverged there" if has_diverged(test.losses) else "did not diverge"
    if not curve:
        return [f"range test: the loss is no number at {test.lrs[0]:g} already"]
    return [
        f"range test  {test.lrs[0]:.1e} {sparkline(curve)} {test.lrs[len(curve) - 1]:.1e}",
        f"            loss lowest at {lr_of_lowest_loss(test):.1e}; {ended}",
    ]


def sparkline(values: Sequence[float]) -> str:
    """At most CURVE_WIDTH blocks, each the mean of its share of `values`."""
    width = min(len(values), CURVE_WIDTH)
    edges = [index * len(values) // width for index in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1)) if span else 0] for value in means)
