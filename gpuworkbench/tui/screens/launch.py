"""Launch: a preset as a form. Every change is checked by the loader and shown in what the run would take."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import DescendantFocus, Resize
from textual.message import Message
from textual.widgets import Button, Input, Static

from gpuworkbench.launch.create import LaunchRequest
from gpuworkbench.text import safe_text
from gpuworkbench.tui.form.draft import Checked, Draft, blamed_key, check
from gpuworkbench.tui.form.fields import QUEUE_KEY, TWIN_KEY, FormField
from gpuworkbench.tui.form.outlook import Machine, Outlook, doubt, look
from gpuworkbench.tui.launch_data import MachineSource
from gpuworkbench.tui.screens.dialogs import Confirm
from gpuworkbench.tui.screens.save_preset import SavePreset
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.data_preview import DataPreview
from gpuworkbench.tui.widgets.field_help import FieldHelp
from gpuworkbench.tui.widgets.field_row import FieldRow
from gpuworkbench.tui.widgets.job_bar import JobBar
from gpuworkbench.tui.widgets.launch_form import LaunchForm, row_of
from gpuworkbench.tui.widgets.outlook_panel import OutlookPanel, summary
from gpuworkbench.tui.widgets.quiet_footer import QuietFooter

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

WIDE = (110, 30)
VIEWS = ("form", "takes", "data-preview")  # one at a time where the terminal is narrow


class LaunchScreen(SizedScreen[None]):
    """The form on the left; what it takes and the data on the right. Enter on the focused button starts."""

    app: WorkbenchApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+g,s", "start", "Start", id="launch.start", tooltip="Start the run (s outside of a text field)"),
        Binding(
            "ctrl+f,slash", "find", "Find", id="launch.find", tooltip="Show the fields that match your words (or /)"
        ),
        Binding("ctrl+r,r", "reset", "Reset", id="launch.reset", tooltip="The focused field as the preset has it"),
        Binding("ctrl+t,t", "twin", "Twin", id="launch.twin", tooltip="The preset's CPU twin, and back"),
        Binding("ctrl+s,w", "save", "Save as", id="launch.save", tooltip="Save as a preset of your own"),
        Binding("ctrl+o,v", "view", "View", id="launch.view", tooltip="Form, what it takes, data: where room is short"),
        Binding("f5", "look_again", "Data", id="launch.data", tooltip="Look at the data again", show=False),
        Binding("escape", "back", "Back", id="launch.back", tooltip="Back to Home; changes are kept until you leave"),
        Binding("down", "enter_form", "Fields", show=False, id="launch.form", tooltip="To the fields"),
    ]

    class Ready(Message):
        """A reading of the machine is waiting."""

    def __init__(self, draft: Draft, machine: Machine | None = None, refusal: str = "") -> None:
        """`machine`: a first reading, so that the form opens complete; `refusal`: why it was not started before."""
        super().__init__()
        self.draft = draft
        self.machine = machine
        self.refusal = refusal
        self.checked: Checked = check(draft, os.environ)
        self.outlook: Outlook | None = None
        self._watcher: Watcher[Machine] | None = None
        self._view = 0
        self._can_reset: bool | None = None

    def compose(self) -> ComposeResult:
        """See the class."""
        yield Static("", id="launch-head", markup=False)
        yield Input(placeholder="words of a field's name or of what it does", id="find", compact=True)
        with Horizontal(id="launch-body"):
            yield LaunchForm(self.checked.fields, self._texts())
            with Vertical(id="outlook"):
                yield OutlookPanel()
                yield DataPreview()
        yield Static("", id="outlook-line", markup=False)
        yield FieldHelp()
        with Horizontal(id="launch-actions"):
            yield Button("Start", id="start", variant="primary", compact=True)
            yield Button("Save as preset", id="save", compact=True)
        yield JobBar()
        yield QuietFooter(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Start has the keys: enter once more starts the preset as it is."""
        self.query_one("#find").display = False
        self.query_one("#form").border_title = "Configuration"
        self.query_one("#start", Button).focus()
        self._watcher = Watcher(MachineSource(self.app.services), lambda: self.post_message(self.Ready()), "machine")
        self._watcher.start()
        self._show()
        if self.refusal:
            self.refused(self.refusal)

    def on_unmount(self) -> None:
        """Nobody looks any more."""
        if self._watcher is not None:
            self._watcher.stop()

    def on_resize(self, event: Resize) -> None:
        """Side by side where there is room, one at a time where there is not."""
        self.set_class(event.size.width >= WIDE[0] and event.size.height >= WIDE[1], "wide")

    # Draft -> check -> screen

    def _texts(self) -> dict[str, str]:
        """What stands in every field."""
        own = {TWIN_KEY: self.draft.is_twin, QUEUE_KEY: self.draft.is_queued}
        switches = {key: "true" if value else "false" for key, value in own.items()}
        return {**self.checked.base_texts, **self.draft.current, **switches}

    def _set_draft(self, draft: Draft) -> None:
        """Take another draft and show what follows from it."""
        self.draft, self.refusal = draft, ""
        self.app.keep_draft(draft)
        self.checked = check(draft, os.environ)
        form = self.query_one(LaunchForm)
        if self.checked.fields and not form.fits(self.checked.fields):
            self.run_worker(form.rebuild(self.checked.fields, self._texts()), exclusive=True)
            self.call_after_refresh(self._show)
        self._show()

    def _show(self) -> None:
        if not self.is_attached:
            return
        checked = self.checked
        with self.app.batch_update():
            self.query_one(LaunchForm).show(checked, self._texts())
            self._show_head()
            self._show_outlook()
            self._show_help()
        if checked.config is not None and not checked.errors:
            self.query_one(DataPreview).plan(checked.config)
        could_reset, self._can_reset = self._can_reset, self.check_action("reset", ())
        if could_reset != self._can_reset:
            self.refresh_bindings()  # only then: the footer is made anew by it

    def _show_head(self) -> None:
        preset, n = self.draft.preset, len(self.checked.overrides)
        twin = Content.styled(" CPU twin ", "bold $text-accent") if self.draft.is_twin else Content(" ")
        description = safe_text(preset.config.description, max_chars=300)
        head = Content.assemble((f" {preset.name}", "bold"), twin, (description, "$foreground-muted"))
        self.query_one("#launch-head", Static).update(head, layout=False)
        wrong = len(self.checked.errors)
        parts = [f"{n} changed"] if n else []
        parts += [f"{wrong} not valid"] if wrong else []
        self.query_one("#form").border_subtitle = ", ".join(parts) or "as the preset has it"

    def _show_outlook(self) -> None:
        checked, machine = self.checked, self.machine
        if checked.config is not None and checked.base is not None and machine is not None:
            has_twin = self.draft.preset.has_cpu_twin
            self.outlook = look(checked.config, checked.base, machine, has_cpu_twin=has_twin)
        if self.outlook is not None:
            self.query_one(OutlookPanel).show(self.outlook, is_stale=not checked.is_valid)
            line = summary(self.outlook, is_stale=not checked.is_valid)
            self.query_one("#outlook-line", Static).update(line, layout=False)

    def _show_help(self) -> None:
        row = row_of(self.focused)
        self.query_one(FieldHelp).show(row.item if row is not None else None, self.checked, self.refusal)

    @on(Ready)
    def _ready(self) -> None:
        machine = self._watcher.take() if self._watcher is not None else None
        if machine is not None and machine != self.machine:
            self.machine = machine
            self._show_outlook()

    @on(DescendantFocus)
    def _focus_moved(self) -> None:
        self._show_help()

    @on(FieldRow.Edited)
    def _edited(self, event: FieldRow.Edited) -> None:
        if event.key == TWIN_KEY:
            self._set_twin(event.text == "true")
        elif event.key == QUEUE_KEY:
            self._set_draft(replace(self.draft, is_queued=event.text == "true"))
        else:
            is_back = event.text == self.checked.base_texts.get(event.key)
            self._set_draft(self.draft.changed(event.key, None if is_back else event.text))

    def _set_twin(self, is_twin: bool) -> None:
        if is_twin and not self.draft.preset.has_cpu_twin:
            self.app.notify(f"{self.draft.preset.name} has no CPU twin", severity="warning", markup=False)
            self._show()
            return
        self._set_draft(replace(self.draft, is_twin=is_twin))

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey out what makes no sense now."""
        if action == "view":
            return not self.has_class("wide")
        if action == "twin":
            return True if self.draft.preset.has_cpu_twin else None
        if action == "reset":
            row = row_of(self.focused)
            return True if row is not None and row.item.name in self.draft.current else None
        return True

    @on(Button.Pressed, "#start")
    def action_start(self) -> None:
        """Start what the form says; the first wrong field gets the keys instead, where there is one."""
        checked = self.checked
        if not checked.is_valid:
            key = next(iter(checked.errors), "")
            self.refused(checked.errors.get(key, "the configuration is not valid"), key)
            return
        question = doubt(self.outlook, has_cards=self.machine is not None and bool(self.machine.cards))
        if not question:
            self._start(force=False)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._start(force=True)

        self.app.push_screen(Confirm(question, "Start", "Cancel"), answered)

    def _start(self, *, force: bool) -> None:
        request = LaunchRequest(
            preset=self.draft.argument,
            runs_dir=self.app.services.runs_dir,
            sets=self.checked.overrides,
            cpu_twin=self.draft.is_twin,
            force=force,
            queue=self.draft.is_queued,
        )
        self.app.launch(request, self.draft.label, self.draft)

    def refused(self, line: str, key: str | None = None) -> None:
        """Say why it was not started: at the field that is to blame, where one is."""
        self.refusal = line
        known: dict[str, FormField] = {item.name: item for item in self.checked.fields}
        blamed = blamed_key(line, known) if key is None else key
        if not (blamed and self.query_one(LaunchForm).go_to(blamed)):
            self.query_one("#start", Button).focus()
        self._show_help()

    @on(Button.Pressed, "#save")
    def action_save(self) -> None:
        """Save the draft as a preset of one's own."""
        if not self.checked.is_valid:
            self.action_start()  # goes to what is wrong
            return

        def saved(name: str | None) -> None:
            if name:
                self.app.notify(f"saved as {name}", markup=False)

        self.app.push_screen(SavePreset(self.draft), saved)

    def action_reset(self) -> None:
        """Take the focused field's change back."""
        row = row_of(self.focused)
        if row is not None:
            self._set_draft(self.draft.changed(row.item.name, None))

    def action_twin(self) -> None:
        """The CPU twin, and back."""
        self._set_twin(not self.draft.is_twin)

    def action_look_again(self) -> None:
        """Prepare and read the data anew."""
        self.query_one(DataPreview).forget()
        self._show()

    def action_view(self) -> None:
        """The next of the three, where only one has room."""
        self._view = (self._view + 1) % len(VIEWS)
        for name in VIEWS:
            self.set_class(VIEWS[self._view] == name, f"view-{name}")

    def action_enter_form(self) -> None:
        """From the buttons to the first field."""
        shown = self.query_one(LaunchForm).shown
        if shown:
            shown[0].editor.focus()

    def action_find(self) -> None:
        """Show the filter and type into it."""
        box = self.query_one("#find", Input)
        box.display = True
        box.focus()

    @on(Input.Changed, "#find")
    def _find_changed(self, event: Input.Changed) -> None:
        self.query_one(LaunchForm).filter(event.value)

    @on(Input.Submitted, "#find")
    def _find_done(self, event: Input.Submitted) -> None:
        """To the field of that name, else to the first that speaks of it."""
        words = event.value.lower().split()
        shown = self.query_one(LaunchForm).shown
        named = [row for row in shown if all(word in row.item.name for word in words)]
        for row in [*named, *shown][:1]:
            row.editor.focus()

    @on(Input.Submitted)
    def _field_done(self, event: Input.Submitted) -> None:
        """Enter in a field goes on to the next."""
        if event.input.id != "find":
            self.query_one(LaunchForm).action_move(1)

    def action_back(self) -> None:
        """Close the filter, else leave a field for the buttons, else go back to Home."""
        box = self.query_one("#find", Input)
        if box.display:
            box.value = ""
            box.display = False
            self.query_one("#start", Button).focus()
        elif row_of(self.focused) is not None:
            self.query_one("#start", Button).focus()
        else:
            self.app.leave(self)
