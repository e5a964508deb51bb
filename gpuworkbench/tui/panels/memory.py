"""Memory: the card's allocator against its limit; the process on the host where there is no card."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.gpu.host import probe_host
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import bar, sparkline
from gpuworkbench.tui.widgets.plot import Curve
from gpuworkbench.tui.widgets.plot_panel import PlotPanel, axis_curve
from gpuworkbench.tui.widgets.rows import Part, labelled, lines
from gpuworkbench.units import GIB, NOT_AVAILABLE, format_bytes

LABEL_WIDTH = 11
VALUE_WIDTH = 11


class MemoryPanel(PlotPanel):
    """Bars of what is held now (or was, at the cursor), the peak, the limit, and what was predicted."""

    TITLE = "Memory"
    NAME = "memory"
    SERIES = ("allocated_bytes", "reserved_bytes", "host_rss_bytes")
    HELP = "Allocated and reserved on the card (the host's where there is no card), peak, limit, prediction"

    def on_mount(self) -> None:
        """The host's size does not change: ask once."""
        self._host_total_bytes = probe_host().memory_total_bytes

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        rows = self._card_rows(view, width) if view.is_on_card else self._host_rows(view, width)
        names = ("allocated_bytes", "reserved_bytes") if view.is_on_card else ("host_rss_bytes",)
        curves = [
            _in_gib(axis_curve(view.state.series, name, self.axis, self.rgb(color)))
            for name, color in zip(names, ("primary", "secondary"), strict=False)
        ]
        step = self.cursor_step(view)
        self.set_legend(Content.styled("" if step is None else f"at step {step}", "$accent"))
        return self.with_plot(lines(*rows[: max(height, 1)]), curves, width, height)

    def _card_rows(self, view: RunView, width: int) -> list[list[Part]]:
        state, memory = view.state, view.state.last_memory
        allocated = self.at_cursor(view, "allocated_bytes", memory.allocated_bytes if memory else None)
        reserved = self.at_cursor(view, "reserved_bytes", memory.reserved_bytes if memory else None)
        limit = memory.limit_bytes if memory else None
        full = limit or state.peak_reserved_bytes or state.peak_allocated_bytes
        return [
            _bar_row("allocated", allocated, full, width),
            _bar_row("reserved", reserved, full, width),
            _bar_row("peak", state.peak_allocated_bytes, full, width),
            labelled(
                "limit", f"{format_bytes(limit)}{' (simulated card)' if state.simulated_card else _of_card(view)}"
            ),
            *self._common_rows(view, width, "allocated_bytes"),
        ]

    def _host_rows(self, view: RunView, width: int) -> list[list[Part]]:
        state, memory = view.state, view.state.last_memory
        total = self._host_total_bytes
        return [
            _bar_row(
                "host", self.at_cursor(view, "host_rss_bytes", memory.host_rss_bytes if memory else None), total, width
            ),
            _bar_row("peak", state.peak_host_rss_bytes, total, width),
            labelled("machine", format_bytes(total)),
            *self._common_rows(view, width, "host_rss_bytes"),
        ]

    def _common_rows(self, view: RunView, width: int, series: str) -> list[list[Part]]:
        predicted = view.predicted
        expected = None
        if predicted is not None:
            expected = predicted.total_bytes if view.is_on_card else predicted.host_bytes
        rows = [labelled("predicted", f"{format_bytes(expected)} (from formulas)", "$foreground-muted")]
        if view.is_on_card:
            memory = view.state.last_memory
            rows.append(labelled("host", format_bytes(memory.host_rss_bytes if memory else None)))
        history = sparkline(view.state.series[series].y, width - LABEL_WIDTH)
        return [*rows, [(f"{'history':<{LABEL_WIDTH}}", "$foreground-muted"), (history or NOT_AVAILABLE, "$primary")]]


def _of_card(view: RunView) -> str:
    """The card's whole memory; n/a where the card is not in this machine."""
    card = view.card
    if card is None:
        return f", card {NOT_AVAILABLE}"
    return f" of {format_bytes(card.memory_total_bytes)}"


def _in_gib(curve: Curve) -> Curve:
    return Curve(curve.x, curve.y / GIB, curve.color)


def _bar_row(label: str, num_bytes: float | None, full_bytes: int | None, width: int) -> list[Part]:
    share = num_bytes / full_bytes if num_bytes is not None and full_bytes else None
    room = max(width - LABEL_WIDTH - VALUE_WIDTH - 1, 4)
    style = "$error" if share is not None and share > 0.95 else "$primary"
    value = f"{format_bytes(num_bytes):>{VALUE_WIDTH}}"
    return [(f"{label:<{LABEL_WIDTH}}", "$foreground-muted"), (bar(share, room), style), f" {value}"]
