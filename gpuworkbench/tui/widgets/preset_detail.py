"""What the highlighted preset is, and the predicted waterfall of its memory."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import PresetRow
from gpuworkbench.tui.widgets.rows import Part, lines
from gpuworkbench.tui.widgets.waterfall import waterfall
from gpuworkbench.units import NOT_AVAILABLE, format_count


class PresetDetail(Static):
    """Description, size, and bytes by part: predicted from formulas, not measured."""

    def __init__(self) -> None:
        super().__init__("", id="detail", markup=False)
        self.border_title = "What it takes"
        self.row: PresetRow | None = None

    def show(self, row: PresetRow | None) -> None:
        """Take another preset."""
        if row != self.row:
            self.row = row
            self.redraw()

    def on_resize(self) -> None:
        """Bars have another length."""
        self.redraw()

    def redraw(self) -> None:
        """See the class."""
        row, width = self.row, self.content_size.width
        if not width:
            return
        self.border_subtitle = "predicted, not measured" if row is not None and row.predicted else ""
        self.update(_content(row, width) if row is not None else "", layout=False)


def _content(row: PresetRow, width: int) -> Content:
    config = row.config
    if config is None:
        return Content.styled(row.problem, "$text-error")
    rows: list[Part | list[Part]] = [row.description]
    if row.runs_as in ("twin", "none"):
        then = "Enter opens its CPU twin" if row.runs_as == "twin" else "It has no CPU twin"
        rows.append((f"{safe_text(row.problem)}. {then}.", "$text-accent"))
    n_params = format_count(row.predicted.n_params) if row.predicted else NOT_AVAILABLE
    batch = f"{config.train.micro_batch_size} x {config.train_seq_len} x {config.train.grad_accum_steps}"
    steps = config.train.max_steps if config.train.max_steps is not None else NOT_AVAILABLE
    rows += ["", f"{n_params} parameters, {batch} tokens a step, {steps} steps, {safe_text(config.data.source)}"]
    return lines(*rows, *_waterfall(row, width))


def _waterfall(row: PresetRow, width: int) -> list[list[Part]]:
    predicted = row.predicted
    if predicted is None:
        return [[("n/a: the vocabulary is known once the data is prepared", "$foreground-muted")]]
    is_cuda = row.runs_as == "cuda"
    return [[""], *waterfall(predicted, is_cuda=is_cuda, limit_bytes=row.limit_bytes, width=width)]
