"""Hybrid: how well predicted progress does, as the log's predictions and corrections say; or why there is none."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.events.schema import Correction, MicroCorrection, Prediction
from gpuworkbench.state.lines import format_loss, one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.panel import Panel, Part, labelled, lines
from gpuworkbench.units import NOT_AVAILABLE, format_number

BAR_WIDTH = 10


class HybridPanel(Panel):
    """The newest prediction (or the one at the cursor), the share accepted, and what came of them."""

    TITLE = "Hybrid"
    HELP = "Predicted progress: confidence, horizon, predictor, share accepted, corrections. Predicted is not measured"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state = view.state
        total = state.predictions_accepted + state.predictions_rejected
        if not total:
            return Content.styled(why_none(view), "$foreground-muted")
        step = self.cursor_step(view)
        shown = [event for event in state.predictions if step is None or event.step <= step]
        rows: list[list[Part]] = [
            _share("accepted", state.predictions_accepted / total, f"{state.predictions_accepted} of {total}"),
            *(_prediction(shown[-1]) if shown else [labelled("newest", "none up to this step")]),
            *_outcome(view, step),
        ]
        return lines(*rows[: max(height, 1)])


def why_none(view: RunView) -> str:
    """Why there is nothing predicted in this run, in words."""
    config = view.config
    if config is None:
        return "No prediction in this log, and its configuration cannot be read."
    if not config.hybrid.enabled:
        return "The hybrid trainer is off (hybrid.enabled = false): every step is a full, measured step."
    phase = one_line(view.state.phase or "")
    where = f" The run is in its {phase} phase." if phase else ""
    return f"The hybrid trainer is on; nothing has been predicted yet.{where}"


def _prediction(event: Prediction) -> list[list[Part]]:
    confidence = format_number(event.confidence, 2)
    steps = "step" if event.horizon_steps == 1 else "steps"
    verdict = "accepted" if event.accepted else "rejected"
    gate = ", exploring (gate open)" if event.exploration else ""
    return [
        _share("confidence", event.confidence, confidence),
        labelled("predictor", f"{one_line(event.predictor)}, {event.horizon_steps} {steps}"),
        labelled(
            "newest", f"{verdict} at step {event.step}{gate}", "$text-success" if event.accepted else "$text-warning"
        ),
        labelled("probe", f"{format_loss(event.probe_before)} → {format_loss(event.probe_after)}"),
        labelled("predicted", f"{format_loss(event.predicted_loss)} (not measured)", "$foreground-muted"),
    ]


def _outcome(view: RunView, step: int | None) -> list[list[Part]]:
    state = view.state
    rows: list[list[Part]] = []
    made: list[Correction | MicroCorrection] = [*state.corrections, *state.micro_corrections]
    made = [event for event in made if step is None or event.step <= step]
    if made:
        last = max(made, key=lambda event: event.seq)
        rows.append(
            labelled("correction", f"{format_loss(last.actual_loss)}, predicted {format_loss(last.predicted_loss)}")
        )
    rows.append(labelled("rolled back", str(state.rollbacks)))
    if state.divergences:
        newest = state.divergences[-1]
        rows.append(labelled("divergence", f"{one_line(newest.level)}: {one_line(newest.action)}", "$text-warning"))
    return rows


def _share(label: str, share: float | None, words: str) -> list[Part]:
    return [
        *labelled(label, ""),
        (bar(share, BAR_WIDTH), "$primary"),
        f" {words if share is not None else NOT_AVAILABLE}",
    ]
