"""Throughput: tokens per second, step time, the share of the card's arithmetic, tokens per joule, time left."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.gpu.peak import peak_flops
from gpuworkbench.state.lines import format_rate
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import sparkline
from gpuworkbench.tui.widgets.plot_panel import PlotPanel, axis_curve
from gpuworkbench.tui.widgets.rows import Part, labelled, lines
from gpuworkbench.units import NOT_AVAILABLE, format_count, format_duration


class ThroughputPanel(PlotPanel):
    """Rates over the last steps (or at the cursor), and their history."""

    TITLE = "Throughput"
    NAME = "throughput"
    SERIES = ("tokens_per_s", "step_time_s")
    HELP = "Over the last steps: tokens/s, step time, model FLOPs utilisation (MFU), tokens per joule of the card"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state = view.state
        step = self.cursor_step(view)
        rate = self.at_cursor(view, "tokens_per_s", state.tokens_per_s)
        self.set_legend(Content.styled("" if step is None else f"at step {step}", "$accent"))
        history = sparkline(state.series["tokens_per_s"].y, width - 11)
        rows: list[list[Part]] = [
            labelled("rate", format_rate(rate), "bold"),
            labelled("step time", format_duration(self.at_cursor(view, "step_time_s", state.step_time_s))),
            [(f"{'history':<11}", "$foreground-muted"), (history or NOT_AVAILABLE, "$primary")],
            labelled("ETA" if view.status.is_live else "elapsed", self._time(view)),
            labelled("MFU", format_mfu(view, rate)),
            labelled("tokens/J", format_energy(view)),
            labelled("tokens", format_count(self.at_cursor(view, "tokens_seen", state.tokens_seen))),
        ]
        if view.status.is_live:
            rows.append(labelled("elapsed", format_duration(state.elapsed_s)))
        curve = axis_curve(state.series, "tokens_per_s", self.axis, self.rgb("primary"))
        return self.with_plot(lines(*rows[: max(height, 1)]), [curve], width, height)

    @staticmethod
    def _time(view: RunView) -> str:
        return format_duration(view.state.eta_s if view.status.is_live else view.state.elapsed_s)


def mfu(view: RunView, tokens_per_s: float | None) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B); None where the card's peak is not known."""
    last, config = view.state.last_step, view.config
    if tokens_per_s is None or last is None or config is None or not view.is_on_card:
        return None
    peak = peak_flops(view.state.card, last.precision)
    flops_per_token = config.model.flops_per_token(last.seq_len or config.train_seq_len)
    return None if peak is None else tokens_per_s * flops_per_token / peak


def format_mfu(view: RunView, tokens_per_s: float | None) -> str:
    """MFU in per cent of a peak that is named; why there is none."""
    share = mfu(view, tokens_per_s)
    if share is None:
        return NOT_AVAILABLE if view.is_on_card else f"{NOT_AVAILABLE} (a CPU's peak is not known)"
    last = view.state.last_step
    peak = peak_flops(view.state.card, last.precision) if last else None
    return f"{share:.1%} of {(peak or 0) / 1e12:.0f} TFLOP/s"


def format_energy(view: RunView) -> str:
    """Tokens per joule, from the card's power as NVML reads it now; only while the run trains on a card here."""
    power, rate = view.power_w, view.state.tokens_per_s
    if power is None or rate is None or power <= 0 or not view.status.is_live:
        return NOT_AVAILABLE
    return f"{rate / power:.2f} at {power:.0f} W"
