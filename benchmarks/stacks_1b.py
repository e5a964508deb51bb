"""The CPU twins of the 985M presets, each stack alone and with the hybrid trainer on, against plain fp32 AdamW.

    python -m benchmarks.stacks_1b [--steps 60] [--runs DIR]
    python -m benchmarks.stacks_1b --markdown

Real runs of the real command, each through all phases; a run in --runs that is finished is not made again. Equal true
steps and tokens, so a jump that stands is extra progress. One seed: it shows that the stacks train, not which is best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._record import write_result
from benchmarks.real_runs import Case, figures, finished, run_comparison, surroundings

NAME = "stacks_1b"
TWIN = ("--cpu-twin",)
COMMON = {"train.threads": 1, "sample.interval_steps": 0}
OFF = {**COMMON, "hybrid.enabled": False}
CASES = {
    "plain AdamW, fp32": Case("rtx5080_1b", {**OFF, "memory.weights": "fp32", "memory.packed_optimizer": False}, TWIN),
    "rtx5080_1b, no prediction": Case("rtx5080_1b", OFF, TWIN),
    "rtx5080_1b_tight, no prediction": Case("rtx5080_1b_tight", OFF, TWIN),
    "rtx5080_1b_exact, no prediction": Case("rtx5080_1b_exact", OFF, TWIN),
    "rtx5080_1b": Case("rtx5080_1b", COMMON, TWIN),
    "rtx5080_1b_tight": Case("rtx5080_1b_tight", COMMON, TWIN),
    "rtx5080_1b_exact": Case("rtx5080_1b_exact", COMMON, TWIN),
}


def main() -> None:
    run_comparison(__doc__.splitlines()[0], NAME, measure, table)


def measure(runs: Path, steps: int) -> None:
    """Make the runs and store their figures."""
    found = {}
    for number, (name, case) in enumerate(CASES.items()):
        found[name] = figures(finished(case, runs / f"stack-{number}", steps))
    write_result(NAME, {"environment": surroundings(), "steps": steps, "runs": found})


def table(result: dict[str, Any]) -> list[str]:
    """Markdown."""
    runs = result["runs"]
    plain = next(iter(runs.values()))
    lines = [
        "| twin | validation loss | against plain | jumps kept / undone | steps by phase | host memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        against = "" if run is plain else f"{run['val_loss'] / plain['val_loss'] - 1:+.2%}"
        phases = ", ".join(f"{phase} {count}" for phase, count in run["phase_steps"].items())
        jumps = f"{run['accepted']} / {run['rejected']}"
        host = f"{run['host_peak_bytes'] / 2**20:,.0f} MiB"
        lines.append(f"| {name} | {run['val_loss']:.4f} | {against} | {jumps} | {phases} | {host} |")
    return lines


if __name__ == "__main__":
    main()
