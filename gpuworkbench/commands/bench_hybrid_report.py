"""What a comparison found: one JSON, pictures beside it, a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gpuworkbench.commands.output import print_json, print_table, tell
from gpuworkbench.errors import RunError
from gpuworkbench.io import atomic_write_bytes, atomic_write_json
from gpuworkbench.plan.hybrid_analysis import analyse
from gpuworkbench.plan.hybrid_bench import (
    BASELINE,
    BenchPlan,
    Tuned,
    edge_of_grid,
    next_trials,
    summary_of_tuning,
    tuned_of,
)
from gpuworkbench.plan.hybrid_bench_files import BenchFiles
from gpuworkbench.state.svg_intervals import IntervalRow, svg_intervals
from gpuworkbench.state.svg_plot import Line, svg_plot
from gpuworkbench.units import NOT_AVAILABLE, format_number

FORMAT = 1


def result_of(plan: BenchPlan, files: BenchFiles, preset: Tuned, sets: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the trials so far say, with what was decided before them. `sets` is what was set over the preset."""
    trials = files.read_trials()
    tuned = tuned_of(plan, preset, trials)
    config = msgspec.to_builtins(files.read_config())
    source = Path(config["data"]["source"]).name  # a result is shared, its machine's folders are not
    config["data"]["source"] = source
    return {
        "format": FORMAT,
        "preset": plan.preset,
        "label": plan.label,
        "sets": {key: source if key == "data.source" else value for key, value in sets.items()},
        "optimizer": plan.optimizer,
        "seeds": list(plan.seeds),
        "tuning_seeds": list(plan.tuning_seeds) if plan.schedules else [],
        "budgets": list(plan.budgets),
        "reference": plan.reference,
        "is_complete": not next_trials(plan, preset, trials),
        "tuned": None if tuned is None else tuned._asdict(),
        "tuning": summary_of_tuning(plan, trials),
        "claim_measure": "seconds" if plan.has_clock else "cost",
        "arms": analyse(plan, trials),
        "machine": files.read_machine(),
        "training_seconds": sum(trial.seconds for trial in trials),
        "preregistration_sha256": files.preregistration_sha256(),
        "preregistration": msgspec.to_builtins(files.read_preregistration()),
        "config": config,
        "trials": [msgspec.to_builtins(trial) for trial in trials],
    }


def write_result(result: dict[str, Any], path: Path) -> list[Path]:
    """The JSON at `path` and its pictures beside it; returns all paths, JSON first. Raises RunError."""
    pictures = {f"{path.stem}-{name}.svg": text for name, text in pictures_of(result).items()}
    try:
        atomic_write_json(path, result)
        for name, text in pictures.items():
            atomic_write_bytes(path.with_name(name), text.encode())
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}", "choose another place with --out"
        ) from None
    return [path, *(path.with_name(name) for name in pictures)]


def pictures_of(result: dict[str, Any]) -> dict[str, str]:
    """Loss by budget, the difference to the baseline by budget, and the speed-ups with their intervals, as SVG."""
    arms, budgets = result["arms"], result["budgets"]
    title = f"{result['label']}, {result['optimizer']}, {len(result['seeds'])} seeds"
    x = np.array(budgets, dtype=np.float64)
    mean = {name: np.array([_mean(row["loss"][str(b)]) for b in budgets]) for name, row in arms.items()}
    lines = [Line(name, x, losses) for name, losses in mean.items()]
    base = mean.get(BASELINE)
    differences = [Line(line.label, x, line.y - base) for line in lines if base is not None and line.label != BASELINE]
    rows = [
        IntervalRow(name, row["speedup"], row["interval"][0], row["interval"][1], _mark(row))
        for name, row in arms.items()
        if name != BASELINE
    ]
    return {
        "loss": svg_plot(title, lines, "final validation loss (nats per token)"),
        "difference": svg_plot(title, differences, "loss minus the baseline's (nats)"),
        "speedup": svg_intervals(f"{title}: speed-up to the baseline's loss, 95 % intervals", rows, reference=1.0),
    }


def print_report(result: dict[str, Any], written: list[Path], *, as_json: bool) -> None:
    """The whole result on stdout."""
    if as_json:
        print_json(result | {"files": [str(path) for path in written]})
        return
    tuned = result["tuned"]
    budgets = ", ".join(str(steps) for steps in result["budgets"])
    tell(f"{result['label']}, {result['optimizer']}: {len(result['seeds'])} seeds, budgets of {budgets} steps")
    tell(f"baseline: {tuned['schedule']}, lr {tuned['lr']:g}; L* is its loss at {result['reference']} steps")
    if edge := edge_of_grid(result["tuning"], tuned["schedule"], tuned["lr"]):
        tell(f"its rate is the {edge} of those tried: a better one may exist, and no gain over it is proven")
    header = ["ARM", "SPEED-UP", "95 %", "WALL", "LOSS", "EQUAL TOKENS", ""]
    print_table(header, [table_row(result, name) for name in result["arms"]], right=[1, 3, 4, 5])
    for path in written:
        tell(f"written: {path}")


def table_row(result: dict[str, Any], name: str) -> list[str]:
    """One arm."""
    row = result["arms"][name]
    difference = row["equal_tokens"]
    return [
        name,
        speedup_text(row),
        f"{row['interval'][0]:.3f}-{row['interval'][1]:.3f}",
        f"{row['speedup_seconds']:.3f}",
        format_number(_mean(row["loss"][str(result["reference"])])),
        NOT_AVAILABLE if difference is None else f"{difference['difference_nats']:+.4f}",
        verdict_text(row),
    ]


def speedup_text(row: dict[str, Any]) -> str:
    """The speed-up, marked where some of its seeds are bounds only."""
    return f"{_mark(row)}{row['speedup']:.3f}"


def verdict_text(row: dict[str, Any]) -> str:
    """The verdict, with what keeps an arm from a better one."""
    missed = f" (L* not reached by {row['n_at_most']} of {row['n_seeds']} seeds)" if row["n_at_most"] else ""
    return f"{row['verdict']}{missed}"


def _mark(row: dict[str, Any]) -> str:
    if row["n_at_most"]:
        return "<="
    return ">=" if row["n_at_least"] else ""


def _mean(losses: list[float | None]) -> float:
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if len(known) == len(losses) else float("nan")
