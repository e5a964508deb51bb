"""`gpuworkbench runs`: every run with a status derived from evidence."""

from __future__ import annotations

import argparse

from gpuworkbench.commands.output import print_json, print_table, tell
from gpuworkbench.errors import ExitCode
from gpuworkbench.runs.paths import runs_dir
from gpuworkbench.runs.store import RunInfo, list_runs
from gpuworkbench.units import NOT_AVAILABLE, format_number


def run(arguments: argparse.Namespace) -> int:
    """List the runs, newest first."""
    directory = runs_dir(arguments.runs_dir)
    runs = list_runs(directory)
    if arguments.json:
        print_json(runs)
        return ExitCode.OK
    if not runs:
        tell(f"no runs in {directory} yet; start one: gpuworkbench --headless --preset quickstart")
        return ExitCode.OK
    print_table(["RUN", "STATUS", "STEP", "LOSS", "NOTE"], [row(info) for info in runs], right=[2, 3])
    return ExitCode.OK


def row(info: RunInfo) -> list[str]:
    """One line of the table."""
    step = NOT_AVAILABLE if info.step is None else str(info.step)
    total = f"/{info.max_steps}" if info.max_steps is not None else ""
    note = "; ".join(text for text in (info.simulated_card, info.reason) if text)
    return [info.run_id, info.status, step + total, format_number(info.last_loss), note]
