"""The data panel of the launch form: how much there is, and the first documents with every token's edge in sight."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.text import safe_text
from gpuworkbench.tui.preview_data import DataLooked, DataView, PreviewJob, data_key
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.rows import Part, lines
from gpuworkbench.units import format_count

EDGE = "│"
BAR_WIDTH = 20
DELAY_S = 0.6  # a path is typed letter by letter
# Two looks in turn, beside the edge, so that a token of blanks is seen too.
_LOOKS = ("", "$text-accent")


class DataPreview(Static):
    """Looks at a configuration's data in a thread, once it has paused changing, and shows what was found."""

    def __init__(self) -> None:
        super().__init__("", id="data-preview", markup=False)
        self.border_title = "Data"
        self.view = DataView(stage="waiting")
        self._config: RunConfig | None = None
        self._key: tuple[object, ...] = ()
        self._job: PreviewJob | None = None
        self._timer: Timer | None = None

    def plan(self, config: RunConfig) -> None:
        """Show this configuration's data. A look at other data is called off at once."""
        self._config = config
        if (key := data_key(config)) != self._key:
            self._key = key
            self._call_off()
            self.view = DataView(stage="waiting")
            self._timer = self.set_timer(DELAY_S, self._look)
        self._redraw()

    def forget(self) -> None:
        """The next `plan` looks anew."""
        self._key = ()

    def on_unmount(self) -> None:
        """Nobody looks any more."""
        self._call_off()

    def _call_off(self) -> None:
        if self._job is not None:
            self._job.call_off()
        if self._timer is not None:
            self._timer.stop()

    def _look(self) -> None:
        if self._config is not None:
            number = self._job.number + 1 if self._job is not None else 1
            self._job = PreviewJob(number, self._config, self.post_message)
            self._job.start()

    @on(DataLooked)
    def _looked(self, message: DataLooked) -> None:
        if self._job is not None and message.number == self._job.number:
            self.view = message.view
            self._redraw()

    def _redraw(self) -> None:
        if self._config is not None:
            self.update(_content(self.view, self._config), layout=False)
            self.border_subtitle = _subtitle(self.view)


def _subtitle(view: DataView) -> str:
    if view.problem:
        return "not available"
    return f"{EDGE} ends a token" if view.data is not None else "preparing"


def _content(view: DataView, config: RunConfig) -> Content:
    if view.problem:
        return lines([(view.problem, "$text-error")])
    data = view.data
    if data is None:
        share = f" {bar(view.fraction, BAR_WIDTH)} {view.fraction:.0%}" if view.fraction is not None else " …"
        return lines([view.stage, (share, "$primary")])
    rows: list[Part | list[Part]] = [[(data.description, "$foreground-muted")], _counts(view, config)]
    rows += [[(text, "$text-warning")] for text in (*data.warnings, view.warning) if text]
    samples = [token_edges(sample.decoded) for sample in view.previews]
    return Content("\n").join([lines(*rows), *(Content("\n").join([Content(""), sample]) for sample in samples)])


def _counts(view: DataView, config: RunConfig) -> list[Part]:
    data = view.data
    assert data is not None
    documents = f", {format_count(data.n_documents)} documents" if data.n_documents is not None else ""
    steps = config.train.max_steps
    epochs = config.tokens_per_step * steps / data.n_train_tokens if steps is not None else config.train.max_epochs
    seen = f", {epochs:.2g} epochs" if epochs is not None else ""
    counts = f"{format_count(data.n_train_tokens)} training, {format_count(data.n_val_tokens)} validation tokens"
    return [f"{counts}{documents}, vocabulary {data.vocab_size}{seen}"]


def token_edges(pieces: Sequence[str]) -> Content:
    """Decoded tokens with an edge after each; line ends are shown and kept, anything else odd is made visible."""
    parts: list[tuple[str, str]] = []
    for index, piece in enumerate(pieces):
        text = safe_text(piece).replace("␊", "␊\n")
        # The edge stands before the line break that ends a token.
        end = "\n" if text.endswith("\n") and index < len(pieces) - 1 else ""
        parts += [(text.removesuffix("\n"), _LOOKS[index % 2]), (EDGE + end, "$foreground-muted")]
    return Content.assemble(*parts)
