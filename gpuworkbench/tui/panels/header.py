"""The live screen's head: which run, how it is by evidence, how far, and what is wrong."""

from __future__ import annotations

from textual.content import Content

from gpuworkbench.runs.status import RunStatus
from gpuworkbench.state.lines import format_loss, format_rate, one_line
from gpuworkbench.tui.follower import RunView
from gpuworkbench.tui.widgets.glyphs import bar, fit_parts
from gpuworkbench.tui.widgets.panel import Panel
from gpuworkbench.tui.widgets.rows import Part, lines
from gpuworkbench.tui.widgets.run_looks import STATUS_LOOKS
from gpuworkbench.units import NOT_AVAILABLE, format_count, format_duration


class HeaderPanel(Panel, can_focus=False):
    """Three lines: who, how far, and the status line that says what to do."""

    TITLE = ""

    def draw(self, view: RunView, width: int, height: int) -> Content:
        """See the class."""
        return lines(self._who(view, width), self._progress(view, width), self._note(view, width))

    def _who(self, view: RunView, width: int) -> list[Part]:
        state, config = view.state, view.config
        glyph, style = STATUS_LOOKS[view.status]
        is_twin = state.is_cpu_twin or (config is not None and config.is_cpu_twin)
        params = f"{format_count(state.n_params)} parameters" if state.n_params is not None else ""
        where = one_line(state.card or state.device or "")
        simulated = one_line(state.simulated_card or (config.simulated_card if config else "") or "")
        preset = one_line(state.preset or (config.preset if config else "") or NOT_AVAILABLE)
        more = [(2, preset), (1, "CPU twin" if is_twin else ""), (1, simulated), (4, params), (3, where)]
        if state.attempt > 1:
            more.append((5, f"attempt {state.attempt}"))
        status = f"{glyph} {view.status.value}"
        name = one_line(view.run_id)
        rest = fit_parts([(p, t) for p, t in more if t], width - len(status) - len(name) - 6, " · ")
        parts: list[Part] = [(status, f"bold {style}"), "  ", (name, "bold")]
        return [*parts, "  ", (" · ".join(rest), "$foreground-muted")]

    def _progress(self, view: RunView, width: int) -> list[Part]:
        state = view.state
        share = state.step / state.max_steps if state.max_steps else None
        end = f"/{state.max_steps}" if state.max_steps is not None else ""
        parts = [(0, f"step {state.step}{end}"), (1, f"loss {format_loss(state.loss)}")]
        if state.last_eval is not None:
            parts.append((3, f"val {format_loss(state.last_eval.loss)}"))
        parts.append((4, format_rate(state.tokens_per_s)))
        if view.status.is_live:
            parts.append((2, f"ETA {format_duration(state.eta_s)}"))
        parts.append((5, f"elapsed {format_duration(state.elapsed_s)}"))
        bar_width = max(min(width // 4, 40), 8)
        percent = f" {share:4.0%}  " if share is not None else "  "
        texts = fit_parts(parts, width - bar_width - len(percent))
        return [(bar(share, bar_width), "$primary"), (percent, "bold"), "  ".join(texts)]

    def _note(self, view: RunView, width: int) -> list[Part]:
        text, rest, style = note(view)
        room = max(width - len(rest), 16)  # the cause is cut, not what to do
        return [(text if len(text) <= room else text[: room - 1] + "…", style), (rest, style)]


def note(view: RunView) -> tuple[str, str, str]:
    """What a person should know now: what is so, what to do about it, and their style."""
    report, state = view.report, view.state
    if view.problem:
        return view.problem, "", "$text-error"
    saved = report.last_checkpoint_step
    goes_on = f" — last checkpoint: step {saved}; r goes on" if saved is not None else " — no checkpoint yet"
    if view.status in (RunStatus.CRASHED, RunStatus.FAILED):
        return report.reason or "no cause is known", goes_on, "bold $text-error"
    if view.status is RunStatus.STOPPED:
        return report.reason or "stopped", goes_on, "$text-accent"
    if view.status is RunStatus.PAUSED:
        return "paused; p goes on", "", "$text-warning"
    if report.reason:
        style = "$text-warning" if view.status is RunStatus.STALLED else "$foreground-muted"
        return report.reason, "", style
    since = ""
    if state.unsaved_since_step is not None and view.status.is_live:
        since = f", {state.step - state.unsaved_since_step} steps since"
    return f"last checkpoint: {_saved(saved)}", since, "$foreground-muted"


def _saved(step: int | None) -> str:
    return "none yet" if step is None else f"step {step}"
