"""One text of the Sample screen: which run and checkpoint, what it wrote, how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Select, Static

from gpuworkbench.launch.sampler import sample_request
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.lines import format_rate
from gpuworkbench.text import safe_text
from gpuworkbench.tui.sample_data import Choices
from gpuworkbench.tui.sampling import SampleSource, SampleView, Stage, Values
from gpuworkbench.tui.watch import Watcher


class Offer(NamedTuple):
    """An entry of a list. Its words belong to it: a list shows the chosen entry anew only when that is another."""

    value: str | int | None  # the path of a run; a checkpoint's step, None for the newest
    words: str


UNKNOWN = Offer(None, "newest checkpoint")


class SamplePane(Vertical):
    """Given a run; writes when it is told to, and tells the screen when its run was changed."""

    class Ready(Message):
        """A view is waiting."""

        def __init__(self, pane: SamplePane) -> None:
            super().__init__()
            self.pane = pane

    class RunChosen(Message):
        """Another run was chosen."""

    def __init__(self, paths: RunPaths, letter: str) -> None:
        super().__init__(id=f"pane-{letter.lower()}", classes="panel sample-pane")
        self.paths = paths
        self.view: SampleView | None = None
        self._letter = letter
        self._source: SampleSource | None = None
        self._watcher: Watcher[SampleView] | None = None
        self._offered: dict[str, Sequence[Offer]] = {}

    def compose(self) -> ComposeResult:
        """Two lists above the text."""
        self.border_title = self._letter
        with Horizontal(classes="picks"):
            run = Offer(str(self.paths.root), safe_text(self.paths.run_id, max_chars=60))
            yield Select(entries([run]), allow_blank=False, compact=True, classes="pick-run")
            yield Select(entries([UNKNOWN]), allow_blank=False, compact=True, classes="pick-checkpoint")
        with VerticalScroll(classes="written"):
            yield Static(Content.styled("ctrl+r writes", "$foreground-muted"), markup=False)

    def on_unmount(self) -> None:
        """Nobody would read on."""
        self._end()

    # What there is to choose

    def offer(self, choices: Choices) -> None:
        """Fill the lists; what is chosen stays chosen where it is still there."""
        self._fill(".pick-run", [Offer(*run) for run in choices.runs], str(self.paths.root))
        rows = choices.checkpoints.get(str(self.paths.root))
        if rows is not None:
            newest = Offer(None, f"newest: {rows[0].words}" if rows else "no checkpoint yet")
            self._fill(".pick-checkpoint", [newest, *(Offer(row.step, row.words) for row in rows)], self.checkpoint)

    def _fill(self, which: str, offers: Sequence[Offer], value: str | int | None) -> None:
        select: Select[Offer] = self.query_one(which, Select)
        if select.expanded or self._offered.get(which) == offers:
            return  # never under somebody's cursor
        self._offered[which] = offers
        with select.prevent(Select.Changed):
            select.set_options(entries(offers))
            select.value = next((offer for offer in offers if offer.value == value), offers[0])

    def choose(self, which: str, value: str | int | None) -> None:
        """Choose what a list offers."""
        self.query_one(which, Select).value = next(offer for offer in self._offered[which] if offer.value == value)

    @property
    def checkpoint(self) -> int | None:
        """The chosen step, None for the newest."""
        chosen = self.query_one(".pick-checkpoint", Select).value
        return chosen.value if isinstance(chosen, Offer) and isinstance(chosen.value, int) else None

    @on(Select.Changed, ".pick-run")
    def _run_changed(self, event: Select.Changed) -> None:
        event.stop()
        chosen = event.value
        if not isinstance(chosen, Offer) or chosen.value == str(self.paths.root):
            return
        paths = RunPaths(Path(str(chosen.value)))
        self.paths = paths
        self._offered.pop(".pick-checkpoint", None)
        checkpoints = self.query_one(".pick-checkpoint", Select)
        with checkpoints.prevent(Select.Changed):
            checkpoints.set_options(entries([UNKNOWN]))
            checkpoints.value = UNKNOWN
        self.post_message(self.RunChosen())

    # Writing

    def write(self, prompt: str, values: Values) -> None:
        """Start; what was being written is ended."""
        self.cancel()
        if not list_checkpoints(self.paths):
            name = safe_text(self.paths.run_id)
            self._show(SampleView(Stage.FAILED, problem=f"{name} has no checkpoint yet; c on its screen saves one"))
            return
        request = sample_request(str(self.paths.root), prompt, **values._asdict(), checkpoint=self.checkpoint)
        self._source = SampleSource(request)
        self._watcher = Watcher(self._source, lambda: self.post_message(self.Ready(self)), "sample")
        self._show(SampleView())
        self._watcher.start()

    def cancel(self) -> bool:
        """End what is being written, at once; False where nothing was."""
        self._end()
        if self.view is None or not self.view.is_going_on:
            return False
        self._show(replace(self.view, stage=Stage.CANCELLED))
        return True

    def _end(self) -> None:
        if self._source is not None and self._watcher is not None:
            self._watcher.stop()
            self._source.cancel()
        self._source = self._watcher = None

    @on(Ready)
    def _ready(self, event: Ready) -> None:
        event.stop()
        view = self._watcher.take() if self._watcher is not None else None
        if view is not None:
            self._show(view)

    def _show(self, view: SampleView) -> None:
        self.view = view
        if not self.is_attached or not self.is_mounted:
            return
        scroll = self.query_one(".written", VerticalScroll)
        was_at_end = scroll.scroll_offset.y >= scroll.max_scroll_y - 1
        scroll.query_one(Static).update(_words(view))
        self.border_subtitle = status_words(view)
        if was_at_end and view.is_going_on:
            scroll.scroll_end(animate=False)
        self.screen.refresh_bindings()


def entries(offers: Sequence[Offer]) -> list[tuple[Text, Offer]]:
    """What a list is made of; `Text`, since a plain string would be read as markup."""
    return [(Text(offer.words), offer) for offer in offers]


def status_words(view: SampleView) -> str:
    """One line: how far, from which step, how fast."""
    parts = [view.stage.value]
    if view.step is not None:
        parts.append(f"step {view.step}")
    if view.tokens:
        parts += [f"{view.tokens} tokens", format_rate(view.tokens_per_s)]
    return ", ".join(parts)


def _words(view: SampleView) -> Content:
    """The prompt and its continuation as one text, told apart by their looks; then what went wrong."""
    parts: list[Content | tuple[str, str] | str] = [
        (safe_text(view.prompt, multiline=True), "$foreground-muted"),
        safe_text(view.text, multiline=True),
    ]
    if view.is_going_on:
        parts.append(("▏", "$accent"))
    for line, style in ((view.note, "$text-warning"), (view.problem, "bold $text-error")):
        if line:
            parts.append(("\n" + line if view.prompt or view.text else line, style))
    return Content.assemble(*parts)
