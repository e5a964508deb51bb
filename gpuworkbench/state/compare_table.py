"""The tables of a comparison as rows of text, the same ones on the screen and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gpuworkbench.state.compare import Comparison, LossRow, Summary
from gpuworkbench.state.curves import By
from gpuworkbench.state.lineage import Branch
from gpuworkbench.state.lines import format_loss, one_line
from gpuworkbench.text import cell_width
from gpuworkbench.units import NOT_AVAILABLE, format_bytes, format_count, format_duration

MAX_VALUE_CHARS = 60
METRIC_WORDS = {"val": "validation loss", "train": "averaged training loss"}
NO_DIFFERENCE = "configured alike"


class Table(NamedTuple):
    """Rows of cells under a header; `right` names the columns aligned to the right. `title` says what it is."""

    title: str
    header: list[str]
    rows: list[list[str]]
    right: list[int]


def letters(count: int) -> list[str]:
    """A, B, C ...: what runs are called in tables that have no room for their ids."""
    return [chr(ord("A") + index) for index in range(count)]


def summary_table(comparison: Comparison) -> Table:
    """One row a run. "to" is the place where its loss first was the target's."""
    target = comparison.target_loss
    to = f"TO {format_loss(target)}" if target is not None else "TO A LOSS"
    header = ["", "RUN", "STATUS", "STEP", "BEST VAL", "LAST VAL", "LOSS", "MEAN", "TOKENS", "TIME"]
    header += ["TOK/S", "PEAK MEMORY", to]
    names = letters(len(comparison.runs))
    rows = [[name, *_summary(run, comparison.by)] for name, run in zip(names, comparison.runs, strict=True)]
    return Table(summary_title(comparison), header, rows, right=list(range(3, len(header))))


def summary_title(comparison: Comparison) -> str:
    """What the last column means."""
    if comparison.target_loss is None:
        return "no run has a loss yet"
    loss = f"{METRIC_WORDS[comparison.metric]} <= {format_loss(comparison.target_loss)}"
    return f"TO: {BY_WORDS[comparison.by]} until {loss}"


BY_WORDS: dict[By, str] = {"step": "steps", "tokens": "tokens", "time": "time of training"}


def _summary(run: Summary, by: By) -> list[str]:
    end = f"/{run.max_steps}" if run.max_steps is not None else ""
    reached = {"step": run.target_step, "tokens": run.target_tokens, "time": run.target_elapsed_s}[by]
    mark = f" ({one_line(run.simulated_card)})" if run.simulated_card else ""
    return [
        one_line(run.name or run.run_id) + mark,
        run.status.value,
        f"{run.step}{end}",
        format_loss(run.best_val_loss),
        format_loss(run.last_val_loss),
        format_loss(run.last_loss),
        format_loss(run.mean_loss),
        format_count(run.tokens),
        format_duration(run.elapsed_s),
        format_count(run.tokens_per_s),
        f"{format_bytes(run.peak_memory_bytes)} {run.peak_memory_of}" if run.peak_memory_bytes else NOT_AVAILABLE,
        format_place(reached, by),
    ]


def format_place(x: float | None, by: By) -> str:
    """A place on an axis: `200`, `12.8k`, `1 min 15 s`; n/a for None."""
    if x is None:
        return NOT_AVAILABLE
    if by == "step":
        return f"{x:.0f}"
    return format_count(x) if by == "tokens" else format_duration(x)


def loss_table(comparison: Comparison) -> Table:
    """The losses of all runs at the same places."""
    names = letters(len(comparison.runs))
    head = {"step": "STEP", "tokens": "TOKENS", "time": "TIME"}[comparison.by]
    rows = [_losses(row, comparison.by) for row in comparison.losses]
    title = f"{METRIC_WORDS[comparison.metric]} at equal {BY_WORDS[comparison.by]}"
    return Table(title, [head, *names], rows, right=list(range(len(names) + 1)))


def _losses(row: LossRow, by: By) -> list[str]:
    return [format_place(row.x, by), *("" if loss is None else format_loss(loss) for loss in row.losses)]


def difference_table(comparison: Comparison) -> Table:
    """The keys that differ, one row each."""
    names = letters(len(comparison.runs))
    rows = [[item.key, *map(format_value, item.values)] for item in comparison.differences]
    title = "configuration: what differs" if rows else f"configuration: {NO_DIFFERENCE}"
    return Table(title, ["KEY", *names], rows, right=[])


def format_value(value: Any) -> str:
    """A configured value in a cell; "-" where it is not set."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = one_line(text)
    return text if len(text) <= MAX_VALUE_CHARS else f"…{text[-MAX_VALUE_CHARS + 1 :]}"


def lineage_lines(branches: Sequence[Branch], names: dict[str, str]) -> list[str]:
    """The tree of forks, a line a run; `names` has the letters of the runs that are compared."""
    lines = []
    for branch in branches:
        from_step = f"  from step {branch.from_step}" if branch.from_step is not None else ""
        gone = "" if branch.is_there else "  (not here any more)"
        letter = f"  [{names[branch.run_id]}]" if branch.run_id in names else ""
        lines.append(f"{branch.lines}{one_line(branch.run_id)}{letter}{from_step}{gone}")
    return lines


def run_letters(comparison: Comparison) -> dict[str, str]:
    """Run id -> letter."""
    return dict(zip((run.run_id for run in comparison.runs), letters(len(comparison.runs)), strict=True))


def best_columns(comparison: Comparison) -> dict[str, int]:
    """Column of `summary_table` -> the run that is best in it; none where fewer than two can be compared."""
    reached = {"step": "target_step", "tokens": "target_tokens", "time": "target_elapsed_s"}[comparison.by]
    last = summary_table(comparison).header[-1]
    wanted = {"BEST VAL": "best_val_loss", "LAST VAL": "last_val_loss", "MEAN": "mean_loss", last: reached}
    found = {}
    for label, name in (*wanted.items(), ("TOK/S", "tokens_per_s")):
        values = [(getattr(run, name), index) for index, run in enumerate(comparison.runs)]
        known = [(value, index) for value, index in values if value is not None]
        if len(known) > 1 and len({value for value, _ in known}) > 1:
            found[label] = (max if label == "TOK/S" else min)(known)[1]
    return found


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Columns with two spaces between, one line a row, the header first."""
    cells = [list(map(one_line, row)) for row in [header, *rows]]
    widths = [max(cell_width(row[column]) for row in cells) for column in range(len(header))]
    return ["  ".join(_padded(row, widths, right)).rstrip() for row in cells]


def _padded(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> list[str]:
    gaps = [" " * (width - cell_width(cell)) for cell, width in zip(row, widths, strict=True)]
    pairs = enumerate(zip(row, gaps, strict=True))
    return [gap + cell if index in right else cell + gap for index, (cell, gap) in pairs]
