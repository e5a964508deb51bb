"""`gpuworkbench compare`: runs side by side, the tables of the app's compare screen."""

from __future__ import annotations

import argparse

from gpuworkbench.commands.output import print_json, print_table, tell
from gpuworkbench.errors import ExitCode, UsageError
from gpuworkbench.runs.paths import RunPaths, runs_dir
from gpuworkbench.runs.store import resolve_run
from gpuworkbench.state.compare import MAX_RUNS, as_json, compare, load
from gpuworkbench.state.compare_table import (
    Table,
    difference_table,
    lineage_lines,
    loss_table,
    run_letters,
    summary_table,
)


def run(arguments: argparse.Namespace) -> int:
    """Compare two to eight runs."""
    directory = runs_dir(arguments.runs_dir)
    places = [resolve_run(directory, text) for text in arguments.runs]
    _refuse_count(places)
    runs = [load(paths) for paths in places]
    comparison = compare(runs, arguments.by, arguments.target_loss)
    if arguments.json:
        print_json(as_json(comparison, runs))
        return ExitCode.OK
    for table in (summary_table(comparison), loss_table(comparison), difference_table(comparison)):
        _print(table)
    if comparison.lineage:
        tell("forks")
        for line in lineage_lines(comparison.lineage, run_letters(comparison)):
            tell(line)
        tell("")
    for compared in runs:
        if compared.problem:
            tell(f"{compared.run_id}: {compared.problem}")
    return ExitCode.OK


def _refuse_count(places: list[RunPaths]) -> None:
    named = [paths.root.resolve() for paths in places]
    twice = next((root.name for root in named if named.count(root) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice", "name every run once")
    if not 2 <= len(places) <= MAX_RUNS:
        raise UsageError(f"compare takes 2 to {MAX_RUNS} runs, not {len(places)}", "`gpuworkbench runs` lists them")


def _print(table: Table) -> None:
    tell(table.title)
    if table.rows:
        print_table(table.header, table.rows, right=table.right)
    tell("")
