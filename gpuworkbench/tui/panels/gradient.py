"""Gradient norm and learning rate: how hard the model is being moved."""

from __future__ import annotations

from rich.text import Text
from textual.content import Content
from textual.visual import VisualType

from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import sparkline
from gpuworkbench.tui.widgets.panel import Panel
from gpuworkbench.tui.widgets.plot import Curve, draw
from gpuworkbench.units import NOT_AVAILABLE, format_number


class GradientPanel(Panel):
    """The norm before clipping as a curve, the rate's course below it."""

    TITLE = "Gradient norm and learning rate"
    HELP = "Global gradient norm before clipping, and the scheduled learning rate"
    is_plot = True

    def draw(self, view: RunView, width: int, height: int) -> VisualType:
        """See the class."""
        last, series = view.state.last_step, view.state.series
        lr = NOT_AVAILABLE if last is None or last.lr is None else f"{last.lr:.3g}"
        self.set_legend(Content(f"norm {format_number(last.grad_norm if last else None, 3)}  lr {lr}"))
        norm = series["grad_norm"]
        curve = Curve(norm.x, norm.y, self.rgb("secondary"))
        plot = draw([curve], width, height - 1, axis_color=self.rgb("foreground-darken-3"))
        course = sparkline(series["lr"].y, width - 4)
        if not plot:
            return Content.styled(f"lr  {course}" if course else "no step yet", "$foreground-muted")
        return Text("\n").join([plot, Text(f"lr  {course}")])
