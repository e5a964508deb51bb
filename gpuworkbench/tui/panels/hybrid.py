"""Hybrid: how well predicted progress does, as the log's predictions and corrections say; or why there is none."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.events.schema import Correction, MicroCorrection, Prediction
from gpuworkbench.state.lines import format_loss, one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.panels import hybrid_tables as tables
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.panel import Panel
from gpuworkbench.tui.widgets.rows import Part, beside, labelled, lines, row_width
from gpuworkbench.units import NOT_AVAILABLE, format_number

BAR_WIDTH = 10
LABEL_WIDTH = 12
LARGE = (60, 16)  # cells from which there is room for tables
TWO_COLUMNS = 150
ROWS_A_TABLE = 6
Rows = list[list[Part]]


class HybridPanel(Panel):
    """The newest prediction (or the one at the cursor), the share accepted, and what came of them."""

    TITLE = "Hybrid"
    HELP = "Predicted progress: confidence and its reliability, choices, corrections. Predicted is not measured"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state = view.state
        if not state.predictions_accepted + state.predictions_rejected:
            return self.prose(why_none(view))
        step = self.cursor_step(view)
        rows = _summary(view, step)
        if width >= LARGE[0] and height >= LARGE[1]:
            rows = _with_tables(view, rows, step, width, height)
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


def _summary(view: RunView, step: int | None) -> Rows:
    """The most telling first, since a small panel shows no more."""
    state = view.state
    total = state.predictions_accepted + state.predictions_rejected
    shown = [event for event in state.predictions if step is None or event.step <= step]
    brier = state.prediction_tally.brier
    score = f"  Brier {format_number(brier, 3)}" if brier is not None else ""
    rows = [_share("accepted", state.predictions_accepted / total, f"{state.predictions_accepted} of {total}")]
    rows += _prediction(shown[-1], score) if shown else [_row("newest", "none up to this step")]
    rows += _outcome(view, step)
    reason = next((span.reason for span in reversed(state.spans) if span.reason), "")
    if reason:
        rows.append(_row("controller", f"{one_line(state.phase or '')}: {one_line(reason)}"))
    return rows


def _prediction(event: Prediction, score: str) -> Rows:
    steps = "step" if event.horizon_steps == 1 else "steps"
    verdict = "accepted" if event.accepted else "rejected"
    gate = ", exploring (gate open)" if event.exploration else ""
    style = "$text-success" if event.accepted else "$text-warning"
    return [
        _share("confidence", event.confidence, format_number(event.confidence, 2) + score),
        _row("newest", f"{verdict} at step {event.step}{gate}", style),
        _row("predictor", f"{one_line(event.predictor)}, {event.horizon_steps} {steps}"),
        _row("probe", f"{format_loss(event.probe_before)} → {format_loss(event.probe_after)}"),
        _row("predicted", f"{format_loss(event.predicted_loss)} (not measured)", "$foreground-muted"),
    ]


def _outcome(view: RunView, step: int | None) -> Rows:
    state = view.state
    rows: Rows = []
    made = _corrections(view, step)
    if made:
        last = made[-1]
        rows.append(
            _row("correction", f"{format_loss(last.actual_loss)}, predicted {format_loss(last.predicted_loss)}")
        )
    rows.append(_row("rolled back", str(state.rollbacks)))
    if state.divergences:
        newest = state.divergences[-1]
        rows.append(_row("divergence", f"{one_line(newest.level)}: {one_line(newest.action)}", "$text-warning"))
    return rows


def _corrections(view: RunView, step: int | None) -> list[Correction | MicroCorrection]:
    """Both kinds in the order of the log."""
    made: list[Correction | MicroCorrection] = [*view.state.corrections, *view.state.micro_corrections]
    return sorted((event for event in made if step is None or event.step <= step), key=lambda event: event.seq)


def _with_tables(view: RunView, summary: Rows, step: int | None, width: int, height: int) -> Rows:
    """Summary, reliability and choices; what happened below them, or beside them where there is room."""
    state = view.state
    sums: Rows = [*summary, [""], *tables.reliability(state.prediction_tally), [""]]
    sums += tables.choices(state.prediction_tally.arms)
    is_two = width >= TWO_COLUMNS
    count = max((height - 10) // 2, ROWS_A_TABLE) if is_two else ROWS_A_TABLE
    happened = tables.predictions([e for e in state.predictions if step is None or e.step <= step], count)
    made, seen = _corrections(view, step), [e for e in state.divergences if step is None or e.step <= step]
    if made:
        happened += [[""], *tables.corrections(made, count if not seen else count - 3)]
    if seen:
        happened += [[""], *tables.divergences(seen, 3)]
    if not is_two:
        return [*sums, [""], *happened]
    return beside(sums, happened, max(map(row_width, sums)) + 3)


def _row(label: str, value: str, style: str = "") -> list[Part]:
    return labelled(label, value, style, LABEL_WIDTH)


def _share(label: str, share: float | None, words: str) -> list[Part]:
    shown = words if share is not None else NOT_AVAILABLE
    return [*_row(label, ""), (bar(share, BAR_WIDTH), "$primary"), f" {shown}"]
