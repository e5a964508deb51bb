"""The phase timeline: what the run was doing, step by step, and what each phase took."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.state.lines import one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.panel import Panel, Part, lines
from gpuworkbench.units import format_duration

# phase -> (glyph, style); glyphs differ so that phases can be told apart without colours
LOOKS: dict[str, tuple[str, str]] = {
    "warmup": ("▓", "$secondary"),
    "full": ("█", "$primary"),
    "predict": ("▒", "$warning"),
    "correct": ("▚", "$accent"),
}
ROOMY = 100  # cells from which the legend has the seconds too
OTHER = ("▞", "$foreground-muted")
AHEAD = ("·", "$foreground-disabled")


class TimelinePanel(Panel, can_focus=False):
    """A bar from the first to the last step, one glyph and colour a phase, and its legend."""

    TITLE = "Phases"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state = view.state
        if state.predictions_accepted or state.predictions_rejected:
            counts = f"{state.predictions_accepted} accepted, {state.predictions_rejected} rejected"
            self.set_legend(Content.assemble("predictions ", (counts, "bold")))
        legend = _legend(view, width)
        band = _band(view, width, self.cursor_step(view))
        return lines(band, legend) if height > 1 else lines(band)


def _band(view: RunView, width: int, cursor_step: int | None = None) -> list[Part]:
    state = view.state
    total = max(state.max_steps or 0, state.step, 1)
    phases: list[str | None] = [None] * width
    for span in state.spans:
        end_step = state.step if span.end_step is None else span.end_step
        begin = min(int(span.start_step / total * width), width - 1)
        # A phase of even one step gets a cell, or short predictions would be invisible.
        end = max(min(round(end_step / total * width), width), begin + 1)
        if end_step > span.start_step:
            phases[begin:end] = [span.phase] * (end - begin)
    if cursor_step is None:
        return _drawn(phases)
    at = min(int(cursor_step / total * width), width - 1)
    return [*_drawn(phases[:at]), ("┃", "bold $accent"), *_drawn(phases[at + 1 :])]


def _drawn(phases: list[str | None]) -> list[Part]:
    return [(_look(phase)[0] * count, _look(phase)[1]) for phase, count in _runs(phases)]


def _legend(view: RunView, width: int) -> list[Part]:
    state = view.state
    parts: list[Part] = []
    for phase, tally in state.phase_tallies.items():
        glyph, style = _look(phase)
        now = "▸" if phase == state.phase and view.status.is_live else ""
        steps = "step" if tally.steps == 1 else "steps"
        took = f", {format_duration(tally.seconds)}" if width >= ROOMY else ""
        text = f"{now}{one_line(phase)[:24]} {tally.steps} {steps}{took}   "
        parts += [(f"{glyph * 2} ", style), text]
    if state.max_steps is not None and state.step < state.max_steps:
        parts += [(AHEAD[0] * 2 + " ", AHEAD[1]), (f"{state.max_steps - state.step} to go", "$foreground-muted")]
    return parts or [("no phase yet", "$foreground-muted")]


def _look(phase: str | None) -> tuple[str, str]:
    return AHEAD if phase is None else LOOKS.get(phase, OTHER)


def _runs(phases: list[str | None]) -> list[tuple[str | None, int]]:
    """Neighbours that are the same, with their number."""
    runs: list[tuple[str | None, int]] = []
    for phase in phases:
        if runs and runs[-1][0] == phase:
            runs[-1] = (phase, runs[-1][1] + 1)
        else:
            runs.append((phase, 1))
    return runs
