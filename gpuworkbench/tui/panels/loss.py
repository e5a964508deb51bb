"""Loss curves: training and validation as measured; predicted losses apart, as separate points, and labelled."""

from __future__ import annotations

from textual.content import Content
from textual.visual import VisualType

from gpuworkbench.state.curves import curve
from gpuworkbench.state.lines import format_loss
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.plot import Curve
from gpuworkbench.tui.widgets.plot_panel import PlotPanel, axis_curve
from gpuworkbench.tui.widgets.rows import Part

VAL_MARKER = "●"
PREDICTED_MARKER = "×"


class LossPanel(PlotPanel):
    """Nats per token over steps, tokens or time."""

    TITLE = "Loss"
    NAME = "loss"
    SERIES = ("loss", "val_loss", "predicted_loss")
    HELP = "Nats per token; x, l, [ and ] change the axes and the smoothing, the wheel zooms, a drag pans"

    def draw(self, view: RunView, width: int, height: int) -> VisualType:
        """See the class."""
        series, axis = view.state.series, self.axis
        whole = self._legend(view)
        room = width if self.styles.border_bottom[0] else width - len(self.title) - 4  # else it follows the title
        self.set_legend(whole if whole.cell_length <= room else self._legend(view, is_short=True))
        curves = [axis_curve(series, "loss", axis, self.rgb("primary-muted" if axis.smoothing else "primary"))]
        if axis.smoothing:
            smooth = curve(series, "loss", axis.by, axis.smoothing)
            curves.append(Curve(smooth.x, smooth.y, self.rgb("primary")))
        curves += [
            axis_curve(series, "val_loss", axis, self.rgb("warning"), VAL_MARKER),
            axis_curve(series, "predicted_loss", axis, self.rgb("error"), PREDICTED_MARKER),
        ]
        plot = self.plot(curves, width, height, log_y=axis.is_log)
        if plot:
            return plot
        has_any = any(len(series[name]) for name in ("loss", "val_loss"))
        return Content.styled("nothing in this stretch; 0 shows all" if has_any else "no step yet", "$foreground-muted")

    def _legend(self, view: RunView, *, is_short: bool = False) -> Content:
        """What the curves are, with their values; short where the axis' words would be cut off."""
        series, best = view.state.series, view.state.best_eval
        step = self.cursor_step(view)
        train = self.at_cursor(view, "loss", view.state.loss)
        parts: list[Part] = [("⣀⠤⠒ ", "$primary"), f"train {format_loss(train)}"]
        if len(series["val_loss"]):
            words = f"{'best' if is_short else 'val, best'} {format_loss(best.loss if best else None)}"
            if step is not None:
                words = f"val {format_loss(self.at_cursor(view, 'val_loss', None))}"
            parts += [(f"  {VAL_MARKER} ", "$warning"), words]
        if len(series["predicted_loss"]):
            value = "" if step is None else f" {format_loss(self.at_cursor(view, 'predicted_loss', None))}"
            parts += [(f"  {PREDICTED_MARKER} ", "$error"), f"predicted{value}{'' if is_short else ', not measured'}"]
        if step is not None:
            parts.append((f"  at step {step}", "$accent"))
        if self.axis.words:
            parts.append((f"  {self.axis.words}", "$foreground-muted"))
        return Content.assemble(*parts)
