"""The last lines of a run without a screen: what came out, what it took, and what to do with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from gpuworkbench.events.schema import Eval
from gpuworkbench.state.lines import done_in_phase, format_loss, format_perplexity, format_rate, one_line
from gpuworkbench.state.run_state import RunState
from gpuworkbench.units import format_bytes, format_count, format_duration

_LABEL_WIDTH = 12


def summary_lines(state: RunState, run: str | None = None) -> list[str]:
    """One printable line a topic; topics that the run has nothing about are left out.

    `run`: what a person types to name the run (default: its id).
    """
    return [f"{label:<{_LABEL_WIDTH}}{text}" for label, text in _topics(state, run)]


def _topics(state: RunState, run: str | None) -> Iterator[tuple[str, str]]:
    yield "run", _outcome(state, run)
    yield from _losses(state)
    if state.tokens_seen is not None:
        yield "tokens", f"{format_count(state.tokens_seen)}, {format_rate(state.tokens_per_s)} lately"
    yield "time", _time(state)
    if state.last_memory is not None:
        yield "peak memory", _peaks(state)
        yield from _against_prediction(state)
    yield from _transfers(state)
    yield from _predictions(state)
    yield "checkpoints", _checkpoints(state)
    if state.warnings:
        yield "warnings", str(state.counts.get("warning", len(state.warnings)))
    yield from _next_commands(state, run or state.run_id)


def _outcome(state: RunState, run: str | None) -> str:
    end = f"/{state.max_steps}" if state.max_steps is not None else ""
    status = one_line(state.finish_status) if state.finish_status else "not finished"
    reason = f" ({one_line(state.finish_reason)})" if state.finish_reason else ""
    mark = ", CPU twin" if state.is_cpu_twin else ""
    if state.simulated_card:
        mark += f", {one_line(state.simulated_card)}"
    return f"{one_line(state.run_id or run or 'unknown')}{mark}: {status}{reason} at step {state.step}{end}"


def _losses(state: RunState) -> Iterator[tuple[str, str]]:
    losses = state.series["loss"]
    if len(losses):
        perplexity = state.last_step.perplexity if state.last_step else None
        first_to_last = f"{format_loss(losses.y[0])} -> {format_loss(state.loss)}"
        yield "loss", f"{first_to_last} (perplexity {format_perplexity(perplexity)})"
    if state.nonfinite_losses:
        yield "", f"{_steps(state.nonfinite_losses)} without a finite loss"
    if state.best_eval is not None:
        last = state.last_eval
        yield "val loss", _eval(state.best_eval, "best") + (f", {_eval(last, 'last')}" if last else "")


def _eval(event: Eval, which: str) -> str:
    numbers = f"{format_loss(event.loss)} (perplexity {format_perplexity(event.perplexity)})"
    return f"{which} {numbers} at step {event.step}"


def _time(state: RunState) -> str:
    tallies = sorted(state.phase_tallies.items(), key=lambda item: -item[1].seconds)
    phases = ", ".join(
        f"{one_line(phase)} {format_duration(tally.seconds)} ({done_in_phase(state, phase)})"
        for phase, tally in tallies
    )
    return format_duration(state.elapsed_s) + (f": {phases}" if phases else "")


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _peaks(state: RunState) -> str:
    host = f"host {format_bytes(state.peak_host_rss_bytes)}"
    if state.peak_allocated_bytes is None:
        return host
    return f"card {format_bytes(state.peak_allocated_bytes)}, {host}"


def _against_prediction(state: RunState) -> Iterator[tuple[str, str]]:
    """What was predicted before the run, and how far off that was."""
    predicted = state.predicted_bytes
    is_card = state.peak_allocated_bytes is not None
    measured = state.peak_allocated_bytes if is_card else state.peak_host_rss_bytes
    if not predicted or not measured:
        return
    where = "card" if is_card else "host"
    off = measured / predicted - 1
    yield "predicted", f"{where} {format_bytes(predicted)}, measured {format_bytes(measured)} ({off:+.1%})"


def _transfers(state: RunState) -> Iterator[tuple[str, str]]:
    if not state.offload_totals:
        return
    num_bytes = sum(total.num_bytes for total in state.offload_totals)
    seconds = sum(total.duration_s for total in state.offload_totals)
    hidden = sum(total.overlapped_s for total in state.offload_totals)
    took = f"{format_duration(seconds)}, {format_duration(hidden)} of it hidden behind compute"
    yield "transfers", f"{format_bytes(num_bytes)} in {took}"


def _predictions(state: RunState) -> Iterator[tuple[str, str]]:
    accepted, rejected = state.predictions_accepted, state.predictions_rejected
    if not (accepted or rejected):
        return
    yield "predictions", f"{accepted} accepted, {rejected} rejected, {state.rollbacks} rolled back"
    if state.prediction_s:
        share = f" ({state.prediction_s / state.elapsed_s:.1%} of the time)" if state.elapsed_s else ""
        yield "", f"jumps and probes took {format_duration(state.prediction_s)}{share}; a speed-up was not measured"


def _checkpoints(state: RunState) -> str:
    last = state.last_checkpoint
    if last is None:
        return "none"
    unsaved = f"; unsaved since step {state.unsaved_since_step}" if state.unsaved_since_step is not None else ""
    return f"{state.counts.get('checkpoint_saved', 0)} written, last {one_line(last.path)}{unsaved}"


def _next_commands(state: RunState, name: str | None) -> Iterator[tuple[str, str]]:
    if name is None or state.last_checkpoint is None:
        return
    run = shlex.quote(one_line(name))
    prompt = f" --prompt {shlex.quote(one_line(state.samples[-1].prompt))}" if state.samples else ""
    yield "sample", f"gpuworkbench sample {run}{prompt}"
    further = f" --steps {2 * state.step}" if state.finish_status == "completed" and state.step else ""
    error = state.errors[-1] if state.errors else None
    if error is not None and error.fix and error.attempt == state.attempt and state.finish_status == "stopped":
        changes = ", ".join(one_line(f"{key} = {value}") for key, value in error.fix.items())
        yield "make it fit", f"gpuworkbench --resume {run} --headless --apply-fix   ({changes})"
    yield "go on", f"gpuworkbench --resume {run} --headless{further}"
