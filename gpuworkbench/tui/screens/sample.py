"""Sample: let checkpoints write, one or two side by side with the same prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.events import Resize
from textual.message import Message
from textual.widgets import Input, Label, TextArea

from gpuworkbench.errors import UsageError
from gpuworkbench.launch.sampler import DEFAULT_SEED, DEFAULT_TEMPERATURE, DEFAULT_TOKENS, DEFAULT_TOP_K
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.text import safe_text
from gpuworkbench.tui.sample_data import Choices, ChoicesSource
from gpuworkbench.tui.sampling import parse_values, require_prompt
from gpuworkbench.tui.screens.sized import SizedScreen
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.quiet_footer import QuietFooter
from gpuworkbench.tui.widgets.sample_pane import SamplePane

if TYPE_CHECKING:
    from gpuworkbench.tui.app import WorkbenchApp

WIDE = (110, 30)
LETTERS = ("A", "B")
# name of a field -> what it begins with, and what it means
FIELDS: dict[str, tuple[str, str]] = {
    "tokens": (str(DEFAULT_TOKENS), "How many tokens are written"),
    "temperature": (str(DEFAULT_TEMPERATURE), "0 always takes the likeliest token; higher is wilder"),
    "top-k": (str(DEFAULT_TOP_K), "Chosen from the K likeliest tokens; 0: from all"),
    "seed": (str(DEFAULT_SEED), "The same seed writes the same text"),
}


class SampleScreen(SizedScreen[None]):
    """The prompt and how to write above, the texts below."""

    app: WorkbenchApp
    AUTO_FOCUS = "#prompt"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r,ctrl+enter", "write", "Write", id="sample.write", tooltip="Write anew; enter in a field too"),
        Binding("ctrl+t", "side_by_side", "Two", id="sample.two", tooltip="A second checkpoint or run beside it"),
        Binding("tab", "app.focus_next", "Next field", id="sample.next", tooltip="Prompt, values, lists, texts"),
        Binding("escape", "leave", "Stop, back", id="sample.back", tooltip="End what is being written, then go back"),
    ]

    class Ready(Message):
        """Choices are waiting."""

    def __init__(self, runs: Sequence[RunPaths]) -> None:
        """`runs`: one, or two to be put side by side."""
        super().__init__()
        self.choices: Choices | None = None
        self._panes = [SamplePane(paths, letter) for paths, letter in zip(runs, LETTERS, strict=False)]
        self._watcher: Watcher[Choices] | None = None

    def compose(self) -> ComposeResult:
        """See the class."""
        with Container(id="sample-form", classes="panel") as form:
            form.border_title = "Prompt"
            yield TextArea("", id="prompt", compact=True, tab_behavior="focus", soft_wrap=True)
            with Horizontal(id="sample-values"):
                for name, (value, meaning) in FIELDS.items():
                    yield Label(name)
                    field = Input(value, id=name, compact=True, max_length=20)
                    field.tooltip = meaning
                    yield field
        with Container(id="panes"):
            yield from self._panes
        yield QuietFooter(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Look what there is."""
        self.set_class(len(self._panes) > 1, "two")
        self._watch()

    def on_resize(self, event: Resize) -> None:
        """Texts beside one another where there is room."""
        self.set_class(event.size.width >= WIDE[0] and event.size.height >= WIDE[1], "wide")

    def on_unmount(self) -> None:
        """Nothing is looked for any more; the panes end what they write."""
        if self._watcher is not None:
            self._watcher.stop()

    @property
    def panes(self) -> list[SamplePane]:
        """The texts, from the left."""
        return list(self._panes)

    @on(SamplePane.RunChosen)
    def _watch(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
        shown = tuple(dict.fromkeys(pane.paths for pane in self._panes))
        source = ChoicesSource(self.app.services.runs_dir, shown)
        self._watcher = Watcher(source, lambda: self.post_message(self.Ready()), "checkpoints")
        self._watcher.start()

    @on(Ready)
    def _ready(self) -> None:
        choices = self._watcher.take() if self._watcher is not None else None
        if choices is None or not self.app.has_screen(self):
            return
        is_first, self.choices = self.choices is None, choices
        for pane in self._panes:
            pane.offer(choices)
        prompt = self.query_one("#prompt", TextArea)
        if is_first and not prompt.text:
            prompt.text = safe_text(choices.prompts.get(str(self._panes[0].paths.root), ""), multiline=True)
            prompt.move_cursor(prompt.document.end)

    @on(Input.Submitted)
    def action_write(self) -> None:
        """Write with every shown checkpoint, or say in place what is wrong."""
        form = self.query_one("#sample-form")
        try:
            values = parse_values({name: self.query_one(f"#{name}", Input).value for name in FIELDS})
            prompt = require_prompt(self.query_one("#prompt", TextArea).text)
        except UsageError as error:
            form.border_subtitle = safe_text(error.line())
            form.add_class("wrong")
            field = error.message.partition(":")[0]
            self.query_one(f"#{field}").focus()
            return
        form.remove_class("wrong")
        form.border_subtitle = ""
        for pane in self._panes:
            pane.write(prompt, values)

    async def action_side_by_side(self) -> None:
        """A second text, or one alone again."""
        if len(self._panes) > 1:
            self._panes[1].cancel()
            await self._panes.pop().remove()
        else:
            self._panes.append(SamplePane(self._panes[0].paths, LETTERS[1]))
            await self.query_one("#panes").mount(self._panes[1])
        self.set_class(len(self._panes) > 1, "two")
        self._watch()

    def action_leave(self) -> None:
        """End what is being written; where nothing is, go back."""
        if not any([pane.cancel() for pane in self._panes]):
            self.app.leave(self)
