"""The fields of the launch form under one another, by section, with a filter; up and down move between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.widget import Widget
from textual.widgets import Static

from gpuworkbench.tui.form.draft import Checked
from gpuworkbench.tui.form.fields import FormField
from gpuworkbench.tui.widgets.field_row import FieldRow


class LaunchForm(VerticalScroll, can_focus=False):
    """Rows by key. The screen says what is in them; they say what a person typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Field above", show=False, id="form.up", tooltip="The field above"),
        Binding("down", "move(1)", "Field below", show=False, id="form.down", tooltip="The field below"),
        Binding("pageup", "move(-8)", "Up", show=False, id="form.page_up", tooltip="Eight fields up"),
        Binding("pagedown", "move(8)", "Down", show=False, id="form.page_down", tooltip="Eight fields down"),
    ]

    def __init__(self, items: Sequence[FormField], texts: Mapping[str, str]) -> None:
        super().__init__(id="form")
        self._items = list(items)
        self._texts = texts
        self._words: list[str] = []

    def compose(self) -> ComposeResult:
        """A heading a section, a row a field."""
        yield from _widgets(self._items, self._texts)
        yield Static("no field matches", id="no-field", markup=False)

    def on_mount(self) -> None:
        """Everything is shown at first."""
        self.query_one("#no-field").display = False

    @property
    def rows(self) -> dict[str, FieldRow]:
        """Every field by its key."""
        return {row.item.name: row for row in self.query(FieldRow)}

    @property
    def shown(self) -> list[FieldRow]:
        """The fields that the filter leaves."""
        return [row for row in self.query(FieldRow) if row.display]

    @property
    def focused_row(self) -> FieldRow | None:
        """The field that has the keys."""
        focused = self.screen.focused
        return next((row for row in self.query(FieldRow) if focused is not None and focused in row.children), None)

    def fits(self, items: Iterable[FormField]) -> bool:
        """Whether the rows are those of these fields: another model family has others."""
        return [item.name for item in items] == [item.name for item in self._items]

    async def rebuild(self, items: Sequence[FormField], texts: Mapping[str, str]) -> None:
        """Other fields."""
        self._items, self._texts = list(items), texts
        await self.remove_children("FieldRow, .section-name")
        await self.mount(*_widgets(self._items, texts), before=0)
        self.filter(" ".join(self._words))

    def show(self, checked: Checked, texts: Mapping[str, str]) -> None:
        """Put these texts into the fields, and mark what is changed and what is wrong."""
        for name, row in self.rows.items():
            row.put(texts.get(name, ""))
            row.show(
                checked.base_texts.get(name, ""), checked.errors.get(name, ""), is_changed=checked.is_changed(name)
            )

    def filter(self, text: str) -> None:
        """Show the fields whose name or documentation holds every word of `text`."""
        self._words = text.lower().split()
        sections = set()
        for row in self.query(FieldRow):
            key = row.item.key
            row.display = all(word in f"{key.name} {key.documentation}".lower() for word in self._words)
            if row.display:
                sections.add(row.item.section)
        for heading in self.query(".section-name"):
            heading.display = (heading.name or "") in sections
        self.query_one("#no-field").display = not sections

    def go_to(self, name: str) -> bool:
        """Give the keys to a field; False where there is none of that name."""
        row = self.rows.get(name)
        if row is None:
            return False
        if not row.display:
            self.filter("")
        row.editor.focus()
        self.scroll_to_widget(row, animate=False)
        return True

    def action_move(self, steps: int) -> None:
        """The field so many further down; the ends are ends."""
        shown, row = self.shown, self.focused_row
        if row is None or row not in shown:
            return
        target = shown[min(max(shown.index(row) + steps, 0), len(shown) - 1)]
        target.editor.focus()


def _widgets(items: Iterable[FormField], texts: Mapping[str, str]) -> list[Widget]:
    widgets: list[Widget] = []
    section = ""
    for item in items:
        if item.section != section:
            section = item.section
            widgets.append(Static(section.replace("_", " "), classes="section-name", name=section, markup=False))
        widgets.append(FieldRow(item, texts.get(item.name, "")))
    return widgets


def row_of(widget: Widget | None) -> FieldRow | None:
    """The field that a widget is part of."""
    if widget is None:
        return None
    try:
        return widget.query_ancestor(FieldRow)
    except NoMatches:
        return None
