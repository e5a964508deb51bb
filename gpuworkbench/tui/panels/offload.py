"""Offload: transfers between card and host, or why there are none."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.events.schema import Offload
from gpuworkbench.state.lines import one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.panel import Panel, Part, lines
from gpuworkbench.units import format_bytes, format_duration

ARROWS = {"offload": "→", "restore": "←"}  # off the card, and back


class OffloadPanel(Panel):
    """Sums by kind of transfer, then the newest transfers."""

    TITLE = "Offload"
    HELP = "Transfers between card and host: bytes, seconds, and the seconds hidden behind compute"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state = view.state
        if not state.offload_totals:
            return Content.styled(why_none(view), "$foreground-muted")
        rows: list[list[Part]] = []
        for total in state.offload_totals:
            hidden = total.overlapped_s / total.duration_s if total.duration_s else 0.0
            size = f" {total.count:>3}x {format_bytes(total.num_bytes):>10} {hidden:>4.0%}"
            room = max(width - len(size), 1)
            name = f"{one_line(total.op)} in {one_line(total.phase)}"[:room]
            rows.append([(f"{name:<{room}}", "bold"), size])
        self.set_legend(Content.styled("time hidden behind compute in %", "$foreground-muted"))
        step = self.cursor_step(view)
        newest = [event for event in reversed(state.offloads) if step is None or event.step <= step]
        rows += [_transfer(event, width) for event in newest[: max(height - len(rows), 0)]]
        return lines(*rows[: max(height, 1)])


def why_none(view: RunView) -> str:
    """The reason that this run moves nothing, in words."""
    where = "on the card" if view.is_on_card else "in the host's memory"
    kept = f"Weights, gradients and optimizer state stay {where} for the whole run"
    if view.config is None:
        return f"No transfer so far. {kept} unless its configuration says otherwise."
    if not view.is_on_card:
        return f"This run computes on the CPU, so there is no card to move anything off. {kept}."
    return f"This run's preset offloads nothing. {kept}."


def _transfer(event: Offload, width: int) -> list[Part]:
    hidden = event.overlapped_s / event.duration_s if event.duration_s else 0.0
    numbers = f" {format_bytes(event.num_bytes):>10} {format_duration(event.duration_s):>7} {hidden:>4.0%}"
    room = max(width - 7 - len(numbers), 1)
    what = f"{ARROWS.get(event.op) or one_line(event.op)} {one_line(event.target)}"[:room]
    return [(f"{event.step:>6} ", "$foreground-muted"), f"{what:<{room}}", numbers]
