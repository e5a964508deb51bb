"""The presets, grouped by the card they are for, each with its badge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from gpuworkbench.plan.analytic import Verdict
from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import PresetRow
from gpuworkbench.units import format_bytes

VERDICT_STYLES = {Verdict.FITS: "$text-success", Verdict.TIGHT: "$text-warning", Verdict.DOES_NOT_FIT: "$text-error"}


class PresetList(OptionList):
    """Options carry the preset's name as their id."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Open", id="presets.open", tooltip="Look at the preset, change it, start it"),
        Binding("s", "start_now", "Start", id="presets.start", tooltip="Start the preset, or its CPU twin, as it is"),
    ]

    class StartNow(Message):
        """The highlighted preset is to be started as it is."""

    def __init__(self) -> None:
        super().__init__(id="presets", markup=False)
        self.border_title = "Presets"
        self.rows: dict[str, PresetRow] = {}
        self._shown: tuple[tuple[PresetRow, ...], int] | None = None

    def show(self, rows: Sequence[PresetRow]) -> None:
        """Replace the list where something changed; the highlighted preset stays so."""
        self.rows = {row.name: row for row in rows}
        width = max(self.scrollable_content_region.width - 2, 20)
        if self._shown == (tuple(rows), width):
            return
        self._shown = (tuple(rows), width)
        chosen = self.chosen
        self.clear_options()
        self.add_options(self._make_options(rows, width))
        names = [option.id for option in self.options]
        wanted = chosen.name if chosen is not None and chosen.name in names else next((n for n in names if n), None)
        if wanted is not None:
            self.highlighted = names.index(wanted)

    def action_start_now(self) -> None:
        """See the message."""
        self.post_message(self.StartNow())

    @property
    def chosen(self) -> PresetRow | None:
        """The highlighted preset."""
        option = self.highlighted_option
        return self.rows.get(option.id) if option is not None and option.id is not None else None

    def _make_options(self, rows: Sequence[PresetRow], width: int) -> list[Option]:
        options: list[Option] = []
        group = ""
        for row in rows:
            if row.group != group:
                group = row.group
                options.append(Option(Content.styled(group, "bold $foreground-muted"), disabled=True))
            options.append(Option(_line(row, width), id=row.name))
        return options


def badge(row: PresetRow) -> tuple[str, str]:
    """(text, style): how the preset does on this machine, as predicted."""
    if row.problem and row.config is None:
        return "not readable", "$text-error"
    if row.runs_as == "none":
        return "no card here", "$text-error"
    if row.runs_as == "twin":
        return ("no fit: twin", "$text-warning") if row.has_cards else ("CPU twin", "$text-accent")
    if row.verdict is None:
        return "size n/a", "$foreground-muted"
    return row.verdict.label, VERDICT_STYLES[row.verdict]


def _line(row: PresetRow, width: int) -> Content:
    text, style = badge(row)
    size = ""
    if row.predicted is not None and row.runs_as != "none":
        needed = row.predicted.total_bytes if row.runs_as == "cuda" else row.predicted.host_bytes
        size = f"{format_bytes(needed):>10} "
    name_width = width - len(size) - 14
    name = safe_text(row.name, max_chars=name_width)
    if len(row.name) > name_width:
        size, name = "", safe_text(row.name, max_chars=width - 15)
    left = f"  {name}"
    gap = max(width - len(left) - len(size) - 12, 1)
    return Content.assemble(left, " " * gap, (size, "$foreground-muted"), (f"{text:>12}", style))
