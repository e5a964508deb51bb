"""The lines below the form: what the focused field does, what may stand there, and what is wrong."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from gpuworkbench.text import safe_text
from gpuworkbench.tui.form.draft import Checked
from gpuworkbench.tui.form.fields import FormField
from gpuworkbench.tui.widgets.rows import Part, lines


class FieldHelp(Static):
    """Three lines. An error says so wherever the keys are, and takes the place of what is less pressing."""

    def __init__(self) -> None:
        super().__init__("", id="field-help", markup=False)

    def show(self, item: FormField | None, checked: Checked | None, refusal: str) -> None:
        """About `item`, or about the whole form."""
        self.update(_content(item, checked, refusal), layout=False)


def _content(item: FormField | None, checked: Checked | None, refusal: str) -> Content:
    errors = checked.errors if checked is not None else {}
    mine = errors.get(item.name, "") if item is not None else ""
    wrong: list[Part] = [(mine or refusal or _first(errors), "$text-error")]
    if item is None:
        return lines(wrong)
    about: list[Part] = [(item.name, "bold"), f"  {item.key.documentation}"]
    if mine:
        return lines(about, wrong)  # an error says what is expected
    return lines(about, [(f"expects {item.expects}", "$foreground-muted")], wrong)


def _first(errors: object) -> str:
    if not isinstance(errors, dict) or not errors:
        return ""
    more = f"  (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return safe_text(next(iter(errors.values()))) + more
