"""The phase timeline: what the run was doing, step by step, where it predicted, and what each phase took."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.state.lines import done_in_phase, one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import bar
from gpuworkbench.tui.widgets.panel import Panel
from gpuworkbench.tui.widgets.rows import Part, lines, row_width
from gpuworkbench.units import format_duration

# phase -> (glyph, style); glyphs differ so that phases can be told apart without colours
LOOKS: dict[str, tuple[str, str]] = {
    "warmup": ("▓", "$secondary"),
    "full": ("█", "$primary"),
    "predict": ("▒", "$warning"),
    "correct": ("▚", "$accent"),
}
OTHER = ("▞", "$foreground-muted")
AHEAD = ("·", "$foreground-disabled")
ACCEPTED, REJECTED, BOTH = ("▲", "$text-success"), ("▽", "$text-warning"), ("◆", "$text-warning")
PROGRESS_WIDTH = 8


class TimelinePanel(Panel, can_focus=False):
    """A bar from the first to the last step, one glyph and colour a phase, and its legend."""

    TITLE = "Phases"

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        state = view.state
        if state.predictions_accepted or state.predictions_rejected:
            counts = f"{state.predictions_accepted} accepted, {state.predictions_rejected} rejected"
            self.set_legend(Content.assemble("predictions ", (counts, "bold")))
        rows = [_band(view, width, self.cursor_step(view))]
        if state.predictions and height > 2:
            rows.append(_marks(view, width))
        return lines(*rows, _legend(view, width)) if height > 1 else lines(*rows)


def _total_steps(view: RunView) -> int:
    return max(view.state.max_steps or 0, view.state.step, 1)


def _marks(view: RunView, width: int) -> list[Part]:
    """Under the band, where jumps were tried: kept, undone, or in one cell both."""
    total = _total_steps(view)
    found: dict[int, tuple[str, str]] = {}
    for event in view.state.predictions:
        at = min(int(event.step / total * width), width - 1)
        mark = ACCEPTED if event.accepted else REJECTED
        found[at] = mark if found.get(at, mark) == mark else BOTH
    return [found.get(at, " ") for at in range(width)]


def _band(view: RunView, width: int, cursor_step: int | None = None) -> list[Part]:
    state = view.state
    total = _total_steps(view)
    phases: list[str | None] = [None] * width
    for span in state.spans:
        end_step = state.step if span.end_step is None else span.end_step
        begin = min(int(span.start_step / total * width), width - 1)
        # A phase of even one step gets a cell, or short predictions would be invisible.
        end = max(min(round(end_step / total * width), width), begin + 1)
        if end_step > span.start_step:
            phases[begin:end] = [span.phase] * (end - begin)
    for span in state.spans:
        # A jump has no steps of its own and lies between two phases that have.
        if span.end_step == span.start_step and span.phase == "predict":
            phases[min(int(span.start_step / total * width), width - 1)] = span.phase
    if cursor_step is None:
        return _drawn(phases)
    at = min(int(cursor_step / total * width), width - 1)
    return [*_drawn(phases[:at]), ("┃", "bold $accent"), *_drawn(phases[at + 1 :])]


def _drawn(phases: list[str | None]) -> list[Part]:
    return [(_look(phase)[0] * count, _look(phase)[1]) for phase, count in _runs(phases)]


def _legend(view: RunView, width: int) -> list[Part]:
    """The phase now, what each phase took, what is ahead; the least telling goes where room is short."""
    state = view.state
    ahead: list[Part] = []
    if state.max_steps is not None and state.step < state.max_steps:
        ahead = [(AHEAD[0] * 2 + " ", AHEAD[1]), (f"{state.max_steps - state.step} to go", "$foreground-muted")]
    row: list[Part] = []
    for lead in (_now(view), []):
        for detail in ("steps and seconds", "steps", ""):
            row = [part for phase in state.phase_tallies for part in _phase_words(view, phase, detail)]
            for tail in (ahead, []):
                if row_width([*lead, *row, *tail]) <= width:
                    return [*lead, *row, *tail] or [("no phase yet", "$foreground-muted")]
    return row


def _now(view: RunView) -> list[Part]:
    """`now predict ███░░ 3/12`, where the trainer said how long the phase is to last."""
    state = view.state
    span = state.spans[-1] if state.spans else None
    if span is None or span.end_step is not None or not span.planned_steps or not view.status.is_live:
        return []
    done = max(state.step - span.start_step, 0)
    share = bar(done / span.planned_steps, PROGRESS_WIDTH)
    style = _look(span.phase)[1]
    words = f" {min(done, span.planned_steps)}/{span.planned_steps}   "
    return [("now ", "$foreground-muted"), (f"{one_line(span.phase)[:24]} ", "bold"), (share, style), words]


def _phase_words(view: RunView, phase: str, detail: str) -> list[Part]:
    tally = view.state.phase_tallies[phase]
    glyph, style = _look(phase)
    now = "▸" if phase == view.state.phase and view.status.is_live else ""
    did = done_in_phase(view.state, phase, with_unit=bool(detail))
    took = f", {format_duration(tally.seconds)}" if "seconds" in detail else ""
    return [(f"{glyph * 2} ", style), f"{now}{one_line(phase)[:24]} {did}{took}   "]


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
