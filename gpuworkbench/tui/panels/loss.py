"""Loss curves: training and validation as measured; predicted losses apart, as separate points, and labelled."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.visual import VisualType

from gpuworkbench.state.lines import format_loss
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.panel import Panel, Part
from gpuworkbench.tui.widgets.plot import Curve, draw

VAL_MARKER = "●"
PREDICTED_MARKER = "×"


class LossPanel(Panel):
    """Nats per token over optimizer steps."""

    TITLE = "Loss"
    HELP = "Nats per token over optimizer steps; l switches to a logarithmic axis"
    is_plot = True
    is_log = reactive(False)

    def watch_is_log(self) -> None:
        """Draw again with the other axis."""
        self.redraw()

    def draw(self, view: RunView, width: int, height: int) -> VisualType:
        """See the class."""
        series = view.state.series
        train, val, predicted = series["loss"], series["val_loss"], series["predicted_loss"]
        self.set_legend(self._legend(view, bool(len(val)), bool(len(predicted))))
        curves = [
            Curve(train.x, train.y, self.rgb("primary")),
            Curve(val.x, val.y, self.rgb("warning"), VAL_MARKER),
            Curve(predicted.x, predicted.y, self.rgb("error"), PREDICTED_MARKER),
        ]
        text = draw(curves, width, height, axis_color=self.rgb("foreground-darken-3"), log_y=self.is_log)
        return text if text else Content.styled("no step yet", "$foreground-muted")

    def _legend(self, view: RunView, has_val: bool, has_predicted: bool) -> Content:
        parts: list[Part] = [("⣀⠤⠒ ", "$primary"), f"train {format_loss(view.state.loss)}"]
        if has_val:
            best = view.state.best_eval
            parts += [(f"  {VAL_MARKER} ", "$warning"), f"val, best {format_loss(best.loss if best else None)}"]
        if has_predicted:
            parts += [(f"  {PREDICTED_MARKER} ", "$error"), "predicted, not measured"]
        if self.is_log:
            parts.append(("  log axis", "$foreground-muted"))
        return Content.assemble(*parts)
