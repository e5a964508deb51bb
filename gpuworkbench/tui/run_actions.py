"""What can be done with a run in any list: name and notes, deletion. The disk is touched off the app's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from gpuworkbench.errors import WorkbenchError
from gpuworkbench.runs.delete import delete_run
from gpuworkbench.runs.label import Label, read_label, write_label
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.text import safe_text
from gpuworkbench.tui.background import in_background
from gpuworkbench.tui.screens.dialogs import Confirm
from gpuworkbench.tui.screens.label_edit import LabelEdit

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

Then = Callable[[], object]


def edit_label(app: WorkbenchApp, paths: RunPaths, then: Then) -> None:
    """Ask for the run's name and notes and store them; `then` is called when the disk has them."""

    def answered(new: tuple[str, str] | None) -> None:
        if new is None:
            return

        def work() -> None:
            # Read again: its place in the queue may have changed while the dialog was open.
            write_label(paths, msgspec.structs.replace(read_label(paths), name=new[0], notes=new[1]))

        def done(_: None) -> None:
            then()

        in_background(app, work, done, _teller(app, "not renamed"), "label")

    label: Label = read_label(paths)
    app.push_screen(LabelEdit(paths.run_id, label.name, label.notes), answered)


def ask_delete(app: WorkbenchApp, paths: RunPaths, then: Then) -> None:
    """Ask, then delete the run; `then` is called when it is gone."""

    def done(_: None) -> None:
        app.services.marks.drop(paths.root)
        app.notify(f"{safe_text(paths.run_id)} is deleted", markup=False)
        then()

    def answered(yes: bool | None) -> None:
        if yes:
            in_background(app, lambda: delete_run(paths), done, _teller(app, "not deleted"), "delete")

    name = read_label(paths).name
    named = f" ({safe_text(name, max_chars=80)})" if name else ""
    question = (
        f"Delete {safe_text(paths.run_id)}{named}?\n"
        "Its checkpoints, log and samples are gone for good; nothing can bring them back."
    )
    app.push_screen(Confirm(question, "Delete it", "Keep it", is_default_no=True), answered)


def _teller(app: WorkbenchApp, title: str) -> Callable[[WorkbenchError], None]:
    return lambda error: app.notify(error.line(), title=title, severity="error", markup=False)
