"""Training: how it computes. Precision, batch, accumulation, mode, device, threads, and what was changed live."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.config.live_keys import LR_SCALE, configured_values
from gpuworkbench.state.compare import live_value
from gpuworkbench.state.lines import one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.panel import Panel
from gpuworkbench.tui.widgets.rows import Part, labelled, lines, row_width
from gpuworkbench.units import NOT_AVAILABLE

BAR_WIDTH = 8


class TrainingPanel(Panel):
    """One line each; the most telling first, since a small panel shows no more."""

    TITLE = "Training"
    HELP = "Precision and its switches, batch, gradient accumulation, mode, device; e changes intervals and the rate"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        rows: list[list[Part]] = [
            labelled("precision", _precision(view)),
            labelled("batch", _batch(view)),
            _accumulation(view, width),
            labelled("mode", _mode(view)),
            labelled("device", _device(view)),
            labelled("rate", self._rate(view)),
            labelled("every", _intervals(view)),
            labelled("optimizer", _optimizer(view)),
            labelled("schedule", _schedule(view)),
        ]
        return lines(*rows[: max(height, 1)])

    def _rate(self, view: RunView) -> str:
        last = view.state.last_step
        lr = self.at_cursor(view, "lr", last.lr if last else None)
        scale = live_value(view.state, LR_SCALE, 1.0)
        return (NOT_AVAILABLE if lr is None else f"{lr:.3g}") + (f" (x {scale:g} live)" if scale != 1 else "")


def _precision(view: RunView) -> str:
    last = view.state.last_step
    if last is None:
        return NOT_AVAILABLE
    count = last.precision_switches
    return f"{one_line(last.precision)}, {count} switch{'' if count == 1 else 'es'}"


def _batch(view: RunView) -> str:
    last, config = view.state.last_step, view.config
    if last is None or config is None:
        return NOT_AVAILABLE
    seq_len = last.seq_len or config.train_seq_len
    return f"{last.effective_batch_size} x {seq_len} = {last.effective_batch_size * seq_len} tokens"


def _accumulation(view: RunView, width: int) -> list[Part]:
    last = view.state.last_step
    if last is None:
        return labelled("accumulate", NOT_AVAILABLE)
    done, of = last.micro_batch_index, last.grad_accum_steps
    row: list[Part] = [*labelled("accumulate", ""), (bar(done / of if of else None, BAR_WIDTH), "$primary")]
    if view.config is None:
        return [*row, f" {done}/{of}"]
    size = view.config.train.micro_batch_size
    full = [*row, f" {done}/{of} micro-batches of {size}"]
    return full if row_width(full) <= width else [*row, f" {done}/{of} of {size}"]


def _mode(view: RunView) -> str:
    config = view.config
    if config is None or config.train.mode is None:
        return NOT_AVAILABLE
    compiled = "" if config.device.compile == "off" else f", compiled ({config.device.compile})"
    return ("exact: resumes bit for bit" if config.train.mode == "exact" else "fast") + compiled


def _device(view: RunView) -> str:
    where = one_line(view.state.card or view.state.device or NOT_AVAILABLE)
    threads = view.config.train.threads if view.config is not None else None
    if view.is_on_card or threads is None:
        return where
    return f"{where}, {threads} thread{'' if threads == 1 else 's'}"


def _intervals(view: RunView) -> str:
    if view.config is None:
        return NOT_AVAILABLE
    now = {key: live_value(view.state, key, value) for key, value in configured_values(view.config).items()}
    names = (("eval", "validate"), ("checkpoint", "save"), ("sample", "sample"))
    return ", ".join(f"{word} {now[f'{key}.interval_steps']:g}" for key, word in names)


def _optimizer(view: RunView) -> str:
    config = view.config
    return NOT_AVAILABLE if config is None else f"{config.optimizer.name}, peak {config.optimizer.lr:g}"


def _schedule(view: RunView) -> str:
    config = view.config
    return NOT_AVAILABLE if config is None else f"{config.schedule.name}, warm-up {config.schedule.warmup_steps}"
