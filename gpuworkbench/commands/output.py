"""What commands print: lines for people, plain tables, JSON. Foreign text passes `safe_text` here."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from gpuworkbench.headless.terminal import terminal_width
from gpuworkbench.text import cell_width, safe_text, wrap_text

INDENT = "    "


def say(text: str) -> None:
    """A line for people on stderr; stdout is kept for data. A reader that is gone ends nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(safe_text(text), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """A command's answer, one line on stdout."""
    print(safe_text(text))


def print_json(value: Any) -> None:
    """One JSON document, indented, on stdout.

    Pure ASCII: nothing in it can act on a terminal, and file names that are no UTF-8 come back from `json.loads` as
    Python knows them. Non-finite numbers are null, as in the events.
    """
    text = json.dumps(_finite(msgspec.to_builtins(value)), indent=2).replace("\x7f", "\\u007f")
    sys.stdout.write(text + "\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """A table on stdout: one line a row; on a terminal that is too narrow for it, see `table_lines`."""
    width = terminal_width() if sys.stdout.isatty() else None
    sys.stdout.write("".join(f"{line}\n" for line in table_lines(header, rows, right, width)))


def table_lines(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), width: int | None = None
) -> list[str]:
    """Columns aligned with two spaces between; `right` names the columns aligned to the right.

    Where that is wider than `width`, the last column (a description, a note) goes below its row, indented and
    wrapped; where even that is too wide, the first column (a name to copy) gets a line of its own.
    """
    cells = [[safe_text(cell) for cell in row] for row in [header, *rows]]
    widths = [max(cell_width(row[column]) for row in cells) for column in range(len(header))]
    gaps = 2 * (len(header) - 1)
    if width is None or sum(widths) + gaps <= width:
        return [_aligned(row, widths, right).rstrip() for row in cells]
    is_first_alone = sum(widths[:-1]) + gaps - 2 > width
    lines = []
    for row in cells[1:] if is_first_alone else cells:
        start = 1 if is_first_alone else 0
        middle = _aligned(row[start:-1], widths[start:-1], [column - start for column in right]).rstrip()
        lines += [row[0], f"{INDENT}{middle}"] if is_first_alone else [middle]
        if row[-1] and row is not cells[0]:
            lines += [INDENT + line for line in wrap_text(row[-1], max(width - len(INDENT), 20))]
    return lines


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    parts = []
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        padding = " " * (width - cell_width(cell))
        parts.append(padding + cell if column in right else cell + padding)
    return "  ".join(parts)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    return [_finite(child) for child in value] if isinstance(value, list) else value
