"""Gradient norm and learning rate: how hard the model is being moved."""

from __future__ import annotations

import numpy as np
from textual.content import Content
from textual.visual import VisualType

from gpuworkbench.events.series import Points
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import sparkline
from gpuworkbench.tui.widgets.plot_panel import PlotPanel, axis_curve
from gpuworkbench.units import NOT_AVAILABLE, format_number


class GradientPanel(PlotPanel):
    """The norm before clipping as a curve, the rate's course below it."""

    TITLE = "Gradient norm and learning rate"
    NAME = "gradient"
    SERIES = ("grad_norm", "lr")
    HELP = "Global gradient norm before clipping, and the scheduled learning rate"

    def draw(self, view: RunView, width: int, height: int) -> VisualType:
        """See the class."""
        last, series = view.state.last_step, view.state.series
        norm = self.at_cursor(view, "grad_norm", last.grad_norm if last else None)
        lr = self.at_cursor(view, "lr", last.lr if last else None)
        self.set_legend(Content(f"norm {format_number(norm, 3)}  lr {NOT_AVAILABLE if lr is None else f'{lr:.3g}'}"))
        plot = self.plot([axis_curve(series, "grad_norm", self.axis, self.rgb("secondary"))], width, height - 1)
        rate = axis_curve(series, "lr", self.axis, self.rgb("secondary"))
        course = sparkline(_in_window(Points(rate.x, rate.y), self.axis.window), width - 4)
        if not plot:
            return Content.styled(f"lr  {course}" if course else "no step yet", "$foreground-muted")
        return Content("\n").join([plot, Content(f"lr  {course}")])


def _in_window(points: Points, window: tuple[float, float] | None) -> np.ndarray:
    if window is None:
        return points.y
    return points.y[(points.x >= window[0]) & (points.x <= window[1])]
