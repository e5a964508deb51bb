"""Events to `RunState`: folds them, and makes frozen snapshots with what follows from them (rates, time left)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType

import msgspec

from gpuworkbench.events.fold import Fold
from gpuworkbench.events.fold_state import RING_SIZES, FoldState, OffloadTotal, Tally, checkpoint_step
from gpuworkbench.events.schema import AnyEvent, Step
from gpuworkbench.state.eta import remaining_s
from gpuworkbench.state.run_state import RunState


class Reducer:
    """`apply` events in the order of the log, take a `snapshot` whenever one is wanted."""

    def __init__(self, fold: Fold | None = None) -> None:
        """Start from nothing, or go on from an index's fold."""
        self.fold = fold or Fold()

    def apply(self, events: Sequence[AnyEvent]) -> None:
        """Take in events."""
        self.fold.add(events)

    def snapshot(self) -> RunState:
        """The state after all events so far. Costs well under a millisecond; series are shared until they change."""
        self.fold.settle()
        state = self.fold.state
        tokens_per_s, step_time_s = smoothed_rates(state.recent_steps)
        started, finished = state.attempt_started, state.finished
        last_checkpoint = state.checkpoints[-1] if state.checkpoints else None
        saved_step = checkpoint_step(last_checkpoint) if last_checkpoint else None
        elapsed_s = state.elapsed_s(state.last_mono_s)
        return RunState(
            run_id=started.run_id if started else None,
            preset=started.preset if started else None,
            device=started.device if started else None,
            card=started.card if started else None,
            simulated_card=started.simulated_card if started else None,
            is_cpu_twin=started.is_cpu_twin if started else False,
            n_params=started.n_params if started else None,
            predicted_bytes=started.predicted_bytes if started else None,
            pid=started.pid if started else None,
            config_sha256=started.config_sha256 if started else None,
            attempt=started.attempt if started else 0,
            from_step=started.from_step if started else 0,
            n_events=state.n_events,
            is_started=started is not None,
            is_paused=state.is_paused,
            is_finished=finished is not None,
            finish_status=finished.status if finished else None,
            finish_reason=finished.reason if finished else None,
            exit_code=finished.exit_code if finished else None,
            step=state.step,
            max_steps=state.max_steps,
            tokens_seen=state.tokens_seen,
            first_time_unix_s=state.first_time_unix_s,
            last_time_unix_s=state.last_time_unix_s,
            elapsed_s=elapsed_s,
            eta_s=None if finished else _eta_s(state, step_time_s, tokens_per_s),
            phase=state.phase,
            spans=tuple(state.spans),
            phase_tallies=MappingProxyType(_tallies(state, elapsed_s)),
            last_step=state.last_step,
            tokens_per_s=tokens_per_s,
            step_time_s=step_time_s,
            nonfinite_losses=state.nonfinite_losses,
            last_eval=next((event for event in reversed(state.evals) if event.split == "val"), None),
            best_eval=state.best_evals[-1] if state.best_evals else None,
            last_memory=state.last_memory,
            peak_allocated_bytes=state.peak_allocated_bytes,
            peak_reserved_bytes=state.peak_reserved_bytes,
            peak_host_rss_bytes=state.peak_host_rss_bytes,
            series=MappingProxyType({name: series.points() for name, series in self.fold.series.items()}),
            last_checkpoint=last_checkpoint,
            last_checkpoint_step=saved_step,
            unsaved_since_step=(saved_step or 0) if state.step > (saved_step or 0) else None,
            counts=MappingProxyType(dict(state.counts)),
            offload_totals=tuple(_copies(state)),
            offloads=tuple(state.offloads[-RING_SIZES["offloads"] :]),
            predictions_accepted=state.predictions_accepted,
            predictions_rejected=state.predictions_rejected,
            prediction_tally=state.prediction_tally.copy(),
            prediction_s=state.prediction_s,
            rollbacks=state.rollbacks,
            **{name: tuple(getattr(state, name)) for name in _RINGS},
        )


_RINGS = (
    "evals",
    "checkpoints",
    "samples",
    "warnings",
    "errors",
    "config_changes",
    "control_acks",
    "curriculum_stages",
    "attempts",
    "finishes",
    "pauses",
    "predictions",
    "corrections",
    "micro_corrections",
    "divergences",
)


def smoothed_rates(steps: Sequence[Step]) -> tuple[float | None, float | None]:
    """Tokens per second and seconds per step over the last steps: totals over totals, so long steps count as such."""
    timed = [step for step in steps if step.step_time_s is not None and step.step_time_s > 0]
    step_time_s = sum(_known(step.step_time_s for step in timed)) / len(timed) if timed else None
    rated = [(step.tokens_per_s, step.step_time_s) for step in timed if step.tokens_per_s is not None]
    seconds = sum(_known(time_s for _, time_s in rated))
    tokens = sum(rate * time_s for rate, time_s in rated if rate is not None and time_s is not None)
    return (tokens / seconds if seconds else None), step_time_s


def _known(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None)


def _eta_s(state: FoldState, step_time_s: float | None, tokens_per_s: float | None) -> float | None:
    max_tokens = state.attempt_started.max_tokens if state.attempt_started else None
    steps_s = None
    if max_tokens is not None and state.tokens_seen is not None and tokens_per_s:
        steps_s = max(max_tokens - state.tokens_seen, 0) / tokens_per_s
    return remaining_s(
        state.step,
        state.max_steps,
        step_time_s,
        [(event.step, event.duration_s) for event in state.evals],
        [(checkpoint_step(event), event.stall_s) for event in state.checkpoints],
        steps_s=steps_s,
    )


def _tallies(state: FoldState, elapsed_s: float) -> dict[str, Tally]:
    """Seconds and steps per phase, the open span included."""
    tallies = dict(state.phase_tallies)
    span = state.spans[-1] if state.spans else None
    if span is not None and span.end_step is None:
        closed = tallies.get(span.phase, Tally())
        tallies[span.phase] = Tally(
            closed.seconds + max(elapsed_s - span.start_s, 0.0), closed.steps + max(state.step - span.start_step, 0)
        )
    return tallies


def _copies(state: FoldState) -> Iterable[OffloadTotal]:
    for by_phase in state.offload_totals.values():
        for total in by_phase.values():
            yield msgspec.structs.replace(total)
