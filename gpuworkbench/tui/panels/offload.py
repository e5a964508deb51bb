"""Offload: transfers between card and host, their bandwidth and how well they hide; or why there are none."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.events.fold import OFFLOAD_SERIES
from gpuworkbench.events.fold_state import OffloadTotal
from gpuworkbench.events.schema import Offload
from gpuworkbench.state.lines import one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import sparkline
from gpuworkbench.tui.widgets.plot import Curve
from gpuworkbench.tui.widgets.plot_panel import PlotPanel, axis_curve
from gpuworkbench.tui.widgets.rows import Part, lines
from gpuworkbench.units import GIB, NOT_AVAILABLE, format_bytes, format_duration

ARROWS = {"offload": "→", "restore": "←"}  # off the card, and back
LABEL_WIDTH = 10
RATE_WIDTH = 12
ROOMY = 66  # cells from which a total has freed bytes, seconds and bandwidth too
TRANSFERS_ABOVE_PLOT = 8
TALL = 20  # rows from which the list ends early for a plot of the bandwidth


class OffloadPanel(PlotPanel):
    """The bandwidth's course, sums by kind of transfer and phase, then the newest transfers."""

    TITLE = "Offload"
    NAME = "offload"
    SERIES = (OFFLOAD_SERIES,)
    HELP = "Transfers between card and host: bytes, seconds, and the seconds hidden behind compute"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state = view.state
        self.set_legend(Content(""))
        if not state.offload_totals:
            return self.prose(why_none(view))
        step = self.cursor_step(view)
        self.set_legend(Content.styled("%: time hidden behind compute", "$foreground-muted"))
        rows: list[list[Part]] = [self._bandwidth(view, width)]
        if width >= ROOMY:
            rows.append(_head(width))
        rows += [_total(total, width) for total in (_sum(view), *state.offload_totals)]
        newest = [event for event in reversed(state.offloads) if step is None or event.step <= step]
        room = max(height - len(rows), 0)
        if height >= TALL:
            rows.append([""])
            room = TRANSFERS_ABOVE_PLOT
        rows += [_transfer(event, width) for event in newest[:room]]
        curve = axis_curve(state.series, OFFLOAD_SERIES, self.axis, self.rgb("primary"))
        gib = Curve(curve.x, curve.y / GIB, curve.color)
        return self.with_plot(lines(*rows[: max(height, 1)]), [gib], width, height)

    def _bandwidth(self, view: RunView, width: int) -> list[Part]:
        """The course of each transfer's bandwidth, and the newest one (or that at the cursor)."""
        points = view.state.series[OFFLOAD_SERIES]
        rate = self.at_cursor(view, OFFLOAD_SERIES, float(points.y[-1]) if len(points) else None)
        words = f"{format_bytes(rate)}/s" if rate is not None else NOT_AVAILABLE
        course = sparkline(points.y, width - LABEL_WIDTH - len(words) - 1)
        return [(f"{'bandwidth':<{LABEL_WIDTH}}", "$foreground-muted"), (course, "$primary"), f" {words}"]


def why_none(view: RunView) -> str:
    """The reason that this run moves nothing, in words."""
    where = "on the card" if view.is_on_card else "in the host's memory"
    kept = f"Weights, gradients and optimizer state stay {where} for the whole run"
    if view.config is None:
        return f"No transfer so far. {kept} unless its configuration says otherwise."
    if not view.is_on_card:
        return f"This run computes on the CPU, so there is no card to move anything off. {kept}."
    return f"This run's preset offloads nothing. {kept}."


def _sum(view: RunView) -> OffloadTotal:
    total = OffloadTotal("all", "")
    for one in view.state.offload_totals:
        for name in ("count", "num_bytes", "freed_bytes", "duration_s", "overlapped_s"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
    return total


def _head(width: int) -> list[Part]:
    columns = f" {'times':>6} {'moved':>10} {'freed':>10} {'took':>9} {'bandwidth':>{RATE_WIDTH}} {'hidden':>6}"
    return [(f"{'':<{max(width - len(columns), 1)}}{columns}", "$foreground-muted")]


def _total(total: OffloadTotal, width: int) -> list[Part]:
    hidden = _share(total.overlapped_s, total.duration_s)
    if width >= ROOMY:
        rate = f"{format_bytes(total.num_bytes / total.duration_s)}/s" if total.duration_s > 0 else NOT_AVAILABLE
        size = f" {total.count:>5}x {format_bytes(total.num_bytes):>10} {format_bytes(total.freed_bytes):>10}"
        size += f" {format_duration(total.duration_s):>9} {rate:>{RATE_WIDTH}} {hidden:>6}"
    else:
        size = f" {total.count:>3}x {format_bytes(total.num_bytes):>10} {hidden:>4}"
    room = max(width - len(size), 1)
    where = f" in {one_line(total.phase)}" if total.phase else ""
    name = f"{one_line(total.op)}{where}"[:room]
    return [(f"{name:<{room}}", "bold"), size]


def _transfer(event: Offload, width: int) -> list[Part]:
    hidden = _share(event.overlapped_s, event.duration_s)
    numbers = f" {format_bytes(event.num_bytes):>10} {format_duration(event.duration_s):>7} {hidden:>4}"
    room = max(width - 7 - len(numbers), 1)
    where = f", {one_line(event.phase)}" if width >= ROOMY else ""
    what = f"{ARROWS.get(event.op) or one_line(event.op)} {one_line(event.target)}{where}"[:room]
    return [(f"{event.step:>6} ", "$foreground-muted"), f"{what:<{room}}", numbers]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 else NOT_AVAILABLE
