"""What people read about a run, one printable line each: the progress line and one line per notable event."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpuworkbench.events import schema
from gpuworkbench.events.schema import AnyEvent
from gpuworkbench.state.run_state import RunState
from gpuworkbench.text import safe_text
from gpuworkbench.units import NOT_AVAILABLE, format_bytes, format_count, format_duration, format_number

MAX_TEXT_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Line:
    """A printable line and its importance: "plain", "good", "warning" or "error"."""

    text: str
    tone: str = "plain"


def one_line(text: str) -> str:
    """Foreign text as one printable line of bounded length."""
    return safe_text(" ".join(text[: 2 * MAX_TEXT_CHARS].split()), max_chars=MAX_TEXT_CHARS)


def format_loss(loss: float | None) -> str:
    """Nats per token."""
    return format_number(loss if loss is not None and math.isfinite(loss) else None)


def format_perplexity(perplexity: float | None) -> str:
    """One decimal; large ones without, very large ones as powers."""
    if perplexity is None or not math.isfinite(perplexity):
        return NOT_AVAILABLE
    if perplexity >= 1e6:
        return f"{perplexity:.2e}"
    return f"{perplexity:.0f}" if perplexity >= 1000 else f"{perplexity:.1f}"


def format_rate(tokens_per_s: float | None) -> str:
    """Tokens per second."""
    return f"{format_count(tokens_per_s)} tok/s" if tokens_per_s is not None else f"{NOT_AVAILABLE} tok/s"


def format_step(step: int, max_steps: int | None) -> str:
    """`step 12/1000`, padded so that the line does not jump as the number grows."""
    return f"step {step}" if max_steps is None else f"step {step:>{len(str(max_steps))}}/{max_steps}"


def done_in_phase(state: RunState, phase: str, *, with_unit: bool = True) -> str:
    """`20 steps`; of a predicted phase `36 jumps`, and its true steps where it has any."""
    steps = state.phase_tallies[phase].steps
    did = f"{steps}{' step' if steps == 1 else ' steps'}" if with_unit else str(steps)
    jumps = state.predictions_accepted + state.predictions_rejected
    if phase != "predict" or not jumps:
        return did
    return f"{jumps} jump{'' if jumps == 1 else 's'}" + (f" and {did}" if steps else "")


def memory_in_use(state: RunState) -> str:
    """The card's allocated memory; the host's where there is no card."""
    memory = state.last_memory
    if memory is None:
        return f"mem {NOT_AVAILABLE}"
    if memory.allocated_bytes is not None:
        return f"mem {format_bytes(memory.allocated_bytes)}"
    return f"host {format_bytes(memory.host_rss_bytes)}"


def progress_parts(state: RunState) -> list[tuple[int, str]]:
    """The progress line in reading order; the number says what goes first on a narrow terminal (high first)."""
    last = state.last_step
    parts = [(0, format_step(state.step, state.max_steps))]
    if state.is_paused:
        parts.append((0, "paused"))
    if state.phase is not None:
        parts.append((3, one_line(state.phase)))
    parts.append((1, f"loss {format_loss(last.loss if last else None)}"))
    parts.append((5, f"ppl {format_perplexity(last.perplexity if last else None)}"))
    if state.predictions and state.predictions[-1].seq > (last.seq if last else -1):
        parts.append((2, f"predicted loss {format_loss(state.predictions[-1].predicted_loss)}"))
    parts.append((4, format_rate(state.tokens_per_s)))
    parts.append((6, memory_in_use(state)))
    if not state.is_finished:
        parts.append((2, f"ETA {format_duration(state.eta_s)}"))
    return parts


def notable_lines(event: AnyEvent, state: RunState) -> list[Line]:
    """The lines of one event; none for what is not notable."""
    write = _WRITERS.get(type(event))
    return write(event, state) if write is not None else []


def _started(event: schema.RunStarted | schema.RunResumed, state: RunState) -> list[Line]:
    where = one_line(event.card or event.device)
    if event.simulated_card:
        where += f" ({one_line(event.simulated_card)})"
    twin = ", CPU twin" if event.is_cpu_twin else ""
    parameters = f", {format_count(event.n_params)} parameters" if event.n_params is not None else ""
    what = "run" if isinstance(event, schema.RunStarted) else f"resumed from step {event.from_step}: run"
    first = Line(f"{what} {one_line(event.run_id)} (preset {one_line(event.preset)}{twin}{parameters}) on {where}")
    return [first, *_began_with(event)]


def _began_with(event: schema.RunStarted | schema.RunResumed) -> list[Line]:
    if event.init_from is None:
        return []
    stored = f", stored as {one_line(', '.join(event.init_dtypes))}" if event.init_dtypes else ""
    tensors = f"{event.init_tensors} tensors" if event.init_tensors is not None else "weights"
    return [Line(f"started from {tensors} in {one_line(event.init_from)}{stored}")]


def _phase_changed(event: schema.PhaseChanged, state: RunState) -> list[Line]:
    planned = f" for {event.planned_steps} steps" if event.planned_steps else ""
    why = f": {one_line(event.reason)}" if event.reason else ""
    return [Line(f"{_at(event, state)}  phase {one_line(event.to_phase)}{planned}{why}")]


def _curriculum_stage(event: schema.CurriculumStage, state: RunState) -> list[Line]:
    size = f"{event.effective_batch_size} sequences of {event.seq_len} tokens a step"
    until = "to the end" if event.until_tokens is None else f"until {format_count(event.until_tokens)} tokens are seen"
    return [Line(f"{_at(event, state)}  curriculum: {size}, {until}")]


def _eval(event: schema.Eval, state: RunState) -> list[Line]:
    best = "  best so far" if event.is_best else ""
    numbers = f"loss {format_loss(event.loss)}  ppl {format_perplexity(event.perplexity)}"
    took = f"{format_count(event.tokens)} tokens in {format_duration(event.duration_s)}"
    return [Line(f"{_at(event, state)}  {one_line(event.split)} {numbers}{best}  ({took})", "good")]


def _checkpoint(event: schema.CheckpointSaved, state: RunState) -> list[Line]:
    took = f"{format_bytes(event.num_bytes)} in {format_duration(event.duration_s)}"
    waited = f", training waited {format_duration(event.stall_s)}"
    return [Line(f"{_at(event, state)}  checkpoint {one_line(event.path)}  ({took}{waited})", "good")]


def _sample(event: schema.Sample, state: RunState) -> list[Line]:
    text = safe_text(event.text, multiline=True, max_chars=MAX_TEXT_CHARS)
    text = text or "(nothing: the model ended its text at once)"
    head = Line(f"{_at(event, state)}  sample after {one_line(event.prompt)!r}:")
    return [head, *(Line(f"    {line}") for line in text.split("\n"))]


def _warning(event: schema.Warning, state: RunState) -> list[Line]:
    return [Line(f"{_at(event, state)}  warning: {_with_hint(event.message, event.hint)}", "warning")]


def _error(event: schema.Error, state: RunState) -> list[Line]:
    what = ", ".join(map(one_line, (event.kind, event.where))) if event.where else one_line(event.kind)
    return [Line(f"{_at(event, state)}  error ({what}): {_with_hint(event.message, event.hint)}", "error")]


def _config_changed(event: schema.ConfigChanged, state: RunState) -> list[Line]:
    return [Line(f"{_at(event, state)}  {one_line(event.key)} changed from {_value(event.old)} to {_value(event.new)}")]


def _control(event: schema.ControlAck, state: RunState) -> list[Line]:
    answer = "done" if event.ok else "refused"
    message = f": {one_line(event.message)}" if event.message else ""
    return [
        Line(f"{_at(event, state)}  {one_line(event.command)} {answer}{message}", "plain" if event.ok else "warning")
    ]


def _divergence(event: schema.Divergence, state: RunState) -> list[Line]:
    seen = f"{one_line(event.signal)} {format_number(event.value)}, threshold {format_number(event.threshold)}"
    return [
        Line(f"{_at(event, state)}  divergence ({one_line(event.level)}): {seen}; {one_line(event.action)}", "warning")
    ]


def _correction(event: schema.Correction, state: RunState) -> list[Line]:
    if not event.rolled_back:
        return []
    losses = f"loss {format_loss(event.actual_loss)}, predicted loss {format_loss(event.predicted_loss)}"
    return [Line(f"{_at(event, state)}  rolled back: {losses}", "warning")]


def _paused(event: schema.Paused, state: RunState) -> list[Line]:
    return [Line(f"{_at(event, state)}  paused")]


def _resumed(event: schema.Resumed, state: RunState) -> list[Line]:
    waited = f" after {format_duration(event.paused_s)}" if event.paused_s is not None else ""
    return [Line(f"{_at(event, state)}  going on{waited}")]


def _finished(event: schema.RunFinished, state: RunState) -> list[Line]:
    why = f": {one_line(event.reason)}" if event.reason else ""
    tone = {"completed": "good", "failed": "error"}.get(event.status, "plain")
    return [Line(f"{_at(event, state)}  {one_line(event.status)}{why}", tone)]


def _at(event: schema.Event, state: RunState) -> str:
    return format_step(event.step, state.max_steps)


def _with_hint(message: str, hint: str) -> str:
    return f"{one_line(message)}; {one_line(hint)}" if hint else one_line(message)


def _value(value: Any) -> str:
    """A config value as a person wrote it; NaN and Inf come as `None`."""
    return NOT_AVAILABLE if value is None else one_line(str(value))


_WRITERS: dict[type, Callable[[Any, RunState], list[Line]]] = {
    schema.RunStarted: _started,
    schema.RunResumed: _started,
    schema.PhaseChanged: _phase_changed,
    schema.CurriculumStage: _curriculum_stage,
    schema.Eval: _eval,
    schema.CheckpointSaved: _checkpoint,
    schema.Sample: _sample,
    schema.Warning: _warning,
    schema.Error: _error,
    schema.ConfigChanged: _config_changed,
    schema.ControlAck: _control,
    schema.Divergence: _divergence,
    schema.Correction: _correction,
    schema.Paused: _paused,
    schema.Resumed: _resumed,
    schema.RunFinished: _finished,
}
