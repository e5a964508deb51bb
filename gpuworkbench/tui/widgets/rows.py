"""Rows of styled text: what panels and lists are made of. Every text is made safe to print here."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.text import cell_width, safe_text

Part = str | Content | tuple[str, str]


def lines(*rows: Part | list[Part]) -> Content:
    """Rows of styled parts under one another; a part is text or (text, style with theme variables).

    Every text passes `safe_text` here, also where its panel forgot to.
    """
    built = [Content.assemble(*map(_safe, row if isinstance(row, list) else [row])) for row in rows]
    return Content("\n").join(built)


def _safe(part: Part) -> Part:
    if isinstance(part, str):
        return safe_text(part)
    return part if isinstance(part, Content) else (safe_text(part[0]), part[1])


def row_width(row: list[Part]) -> int:
    """The cells that a row takes."""
    return sum(
        cell_width(part if isinstance(part, str) else part.plain if isinstance(part, Content) else part[0])
        for part in row
    )


def beside(left: list[list[Part]], right: list[list[Part]], left_width: int) -> list[list[Part]]:
    """Two columns of rows; the right one begins after `left_width` cells. A row of the left must not be wider."""
    rows: list[list[Part]] = []
    for index in range(max(len(left), len(right))):
        row = list(left[index]) if index < len(left) else []
        if index < len(right):
            row = [*row, " " * max(left_width - row_width(row), 1), *right[index]]
        rows.append(row)
    return rows


def labelled(label: str, value: str, style: str = "", width: int = 11) -> list[Part]:
    """A muted label and its value."""
    return [(f"{label:<{width}}", "$foreground-muted"), (value, style)]
