"""What the highlighted preset is, and the predicted waterfall of its memory."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import PresetRow
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.panel import Part, lines
from gpuworkbench.units import NOT_AVAILABLE, format_bytes, format_count

LABEL_WIDTH = 17
VALUE_WIDTH = 11


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
        then = "Enter starts its CPU twin" if row.runs_as == "twin" else "It has no CPU twin"
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
    total = predicted.total_bytes if is_cuda else predicted.host_bytes
    parts = [(name, size) for name, size in predicted.parts.items() if size]
    if not is_cuda:
        parts.append(("process", predicted.host_bytes - predicted.total_bytes))
    room = max(width - LABEL_WIDTH - VALUE_WIDTH - 1, 4)
    full = max(total, 1)
    rows = [_row(name, size, full, room, "$primary") for name, size in parts]
    where = "card" if is_cuda else "host"
    rows.append(_row("total", total, row.limit_bytes or full, room, "$accent"))
    rows.append(
        [
            (
                f"{where} has {format_bytes(row.limit_bytes)}, disk {format_bytes(predicted.disk_bytes)}",
                "$foreground-muted",
            )
        ]
    )
    return [[""], *rows]


def _row(label: str, num_bytes: int, full_bytes: int, room: int, style: str) -> list[Part]:
    value = f" {format_bytes(num_bytes):>{VALUE_WIDTH}}"
    return [(f"{label:<{LABEL_WIDTH}}", "$foreground-muted"), (bar(num_bytes / full_bytes, room), style), value]
