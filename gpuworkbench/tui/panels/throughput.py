"""Throughput: tokens per second, step time, and how much went through."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.state.lines import format_rate, one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import sparkline
from gpuworkbench.tui.widgets.panel import Panel, Part, labelled, lines
from gpuworkbench.units import NOT_AVAILABLE, format_count, format_duration


class ThroughputPanel(Panel):
    """Rates over the last steps, and their history."""

    TITLE = "Throughput"
    HELP = "Tokens per second and step time over the last steps"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state, last = view.state, view.state.last_step
        history = sparkline(state.series["tokens_per_s"].y, width - 11)
        batch = NOT_AVAILABLE
        if last is not None and view.config is not None:
            accum, seq_len = last.grad_accum_steps, last.seq_len or view.config.train_seq_len
            micro = last.effective_batch_size // max(accum, 1)
            batch = f"{last.effective_batch_size} x {seq_len} tokens ({micro} x {accum})"
        rows: list[list[Part]] = [
            labelled("rate", format_rate(state.tokens_per_s), "bold"),
            labelled("step time", format_duration(state.step_time_s)),
            [(f"{'history':<11}", "$foreground-muted"), (history or NOT_AVAILABLE, "$primary")],
            labelled("tokens", format_count(state.tokens_seen)),
            labelled("batch", batch),
            labelled("precision", _precision(view)),
            labelled("elapsed", format_duration(state.elapsed_s)),
        ]
        if view.status.is_live:
            rows.append(labelled("ETA", format_duration(state.eta_s)))
        return lines(*rows[: max(height, 1)])


def _precision(view: RunView) -> str:
    last = view.state.last_step
    if last is None:
        return NOT_AVAILABLE
    switches = f", {last.precision_switches} switches" if last.precision_switches else ""
    mode = f", {view.config.train.mode}" if view.config is not None and view.config.train.mode else ""
    return f"{one_line(last.precision)}{switches}{mode}"
