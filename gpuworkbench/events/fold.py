"""Events in, bounded knowledge of the run out: the one place where a log is interpreted.

The trainer folds its log for the index, readers fold it for the screen. The result depends on the events and their
order only, never on the portions they came in, so that an index plus the rest of a log equals the whole log.
Step and memory events come by the million: they are staged, and taken in as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpuworkbench.events import schema
from gpuworkbench.events.fold_state import (
    MAX_KEYS,
    OTHER,
    RING_SIZES,
    VOIDED,
    VOIDED_AT,
    FoldState,
    PhaseSpan,
    Tally,
    checkpoint_step,
)
from gpuworkbench.events.prediction_tally import MAX_ARMS, N_BINS
from gpuworkbench.events.schema import AnyEvent
from gpuworkbench.events.series import DecimatedSeries, SavedSeries, columns

STEP_SERIES = ("loss", "grad_norm", "lr", "tokens_per_s", "step_time_s", "tokens_seen")
MEMORY_SERIES = ("allocated_bytes", "reserved_bytes", "host_rss_bytes")
OFFLOAD_SERIES = "offload_bytes_per_s"  # of each transfer: its bytes by its own seconds
# A predicted loss has a series of its own: it is never drawn as a measured one. `elapsed_s` is the time of training
# at each step, and turns steps into a time axis as `tokens_seen` turns them into one of tokens.
SERIES = (*STEP_SERIES, *MEMORY_SERIES, OFFLOAD_SERIES, "val_loss", "predicted_loss", "elapsed_s")
_STAGE_EVENTS = 4096


class SavedFold(msgspec.Struct):
    """A fold as the index stores it."""

    state: FoldState
    series: dict[str, SavedSeries]


class Fold:
    """Folds events into `state` and `series`; both are up to date after `settle()`."""

    def __init__(self) -> None:
        self.state = FoldState()
        self.series = {name: DecimatedSeries() for name in SERIES}
        self._steps: list[schema.Step] = []
        self._noted = 0  # how many of the staged steps have been looked at for phase and step number
        self._memories: list[schema.Memory] = []

    def add(self, events: Sequence[AnyEvent]) -> None:
        """Take in events in the order of the log."""
        if not events:
            return
        state = self.state
        if state.n_events == 0:
            state.first_time_unix_s = events[0].time_unix_s
            state.attempt_mono_s = events[0].mono_s
        steps, memories, add_offload = self._steps, self._memories, self._add_offload
        last_mono_s = state.last_mono_s
        for event in events:
            if isinstance(event, schema.Step):
                steps.append(event)
            elif isinstance(event, schema.Memory):
                memories.append(event)
            elif isinstance(event, schema.Offload):
                add_offload(event)
            else:
                state.last_mono_s = last_mono_s
                self._add_rare(event)
                if state.is_before_attempt(event):
                    continue  # its clock is that of a process that never began to train
            last_mono_s = event.mono_s
        state.n_events += len(events)
        state.last_mono_s = last_mono_s
        state.last_time_unix_s = events[-1].time_unix_s
        state.last_seq = events[-1].seq
        if len(steps) >= _STAGE_EVENTS or len(memories) >= _STAGE_EVENTS:
            self.settle()

    def settle(self) -> None:
        """Take in what is staged."""
        if self._steps:
            self._note_steps()
            self._extend("step", STEP_SERIES, self._steps)
            losses = [event.loss for event in self._steps if event.scored_tokens != 0]
            self.state.nonfinite_losses += losses.count(None)
            self._steps.clear()
            self._noted = 0
        if self._memories:
            self._extend("memory", MEMORY_SERIES, self._memories)
            self._note_memories(self._memories)
            self._memories.clear()

    def save(self) -> SavedFold:
        """What the index stores."""
        self.settle()
        return SavedFold(self.state, {name: series.save() for name, series in self.series.items()})

    @classmethod
    def load(cls, saved: SavedFold) -> Fold:
        """The fold that `save` stored. Raises ValueError on content that `save` cannot have written."""
        fold = cls()
        if saved.series.keys() != fold.series.keys():
            raise ValueError("other series than this version's")
        if len(saved.state.prediction_tally.bins) != N_BINS or len(saved.state.prediction_tally.arms) > MAX_ARMS + 1:
            raise ValueError("another tally than this version's")
        for name, size in RING_SIZES.items():
            if len(getattr(saved.state, name)) > 2 * size:
                raise ValueError(f"too many {name}")
        fold.series = {name: DecimatedSeries.load(series) for name, series in saved.series.items()}
        fold.state = saved.state
        return fold

    def _extend(self, kind: str, names: Sequence[str], events: Sequence[Any]) -> None:
        x = columns(events, "step")
        for name in names:
            self.series[name].extend(x, columns(events, name))
        self._count(kind, len(events))

    def _count(self, kind: str, n: int = 1) -> None:
        self.state.counts[kind] = self.state.counts.get(kind, 0) + n

    def _ring(self, name: str, *events: Any) -> None:
        ring = getattr(self.state, name)
        ring.extend(events)
        del ring[: -RING_SIZES[name]]

    # Steps, phases and time

    def _note_steps(self) -> None:
        """Phase, step number and the last steps, from the staged steps not looked at yet."""
        new = self._steps[self._noted :]
        if not new:
            return
        self._noted = len(self._steps)
        state = self.state
        # Now and not in `settle`: no pause lies between these steps and what is known of pauses.
        self.series["elapsed_s"].extend(columns(new, "step"), state.elapsed_column_s(columns(new, "mono_s")))
        if {event.phase for event in new} != {state.phase}:
            for event in new:
                if event.phase != state.phase:
                    self._enter_phase(event.phase, max(event.step - 1, 0), event.mono_s, "")
        state.last_step = new[-1]
        state.step = new[-1].step
        state.tokens_seen = new[-1].tokens_seen
        self._ring("recent_steps", *new[-RING_SIZES["recent_steps"] :])

    def _enter_phase(self, phase: str, step: int, mono_s: float, why: str, planned: int | None = None) -> None:
        elapsed_s = self.state.elapsed_s(mono_s)
        self._close_span(step, elapsed_s)
        self.state.phase = phase
        self._ring("spans", PhaseSpan(phase, step, elapsed_s, reason=why, planned_steps=planned))

    def _close_span(self, step: int, elapsed_s: float) -> None:
        """End the open span, if there is one, and add it to its phase's tally."""
        spans = self.state.spans
        if not spans or spans[-1].end_step is not None:
            return
        span = spans[-1]
        end_step, end_s = max(step, span.start_step), max(elapsed_s, span.start_s)
        spans[-1] = msgspec.structs.replace(span, end_step=end_step, end_s=end_s)
        self._tally(span.phase, end_s - span.start_s, end_step - span.start_step)

    def _tally(self, phase: str, seconds: float, steps: int) -> None:
        tallies = self.state.phase_tallies
        key = phase if phase in tallies or len(tallies) < MAX_KEYS else OTHER
        old = tallies.get(key, Tally())
        tallies[key] = Tally(old.seconds + seconds, max(old.steps + steps, 0))

    def _void_after(self, step: int) -> None:
        """Drop what earlier attempts did beyond `step`: it is done again. Costs (seconds, bytes) stay counted."""
        self.settle()
        state = self.state
        for series in self.series.values():
            series.truncate_after(step)
        self.series["predicted_loss"].truncate_after(step - 1)
        for prediction in state.predictions:
            if prediction.step >= step:
                state.predictions_accepted -= prediction.accepted
                state.predictions_rejected -= not prediction.accepted
                state.prediction_tally.count(prediction, -1)
        state.predictions_accepted = max(state.predictions_accepted, 0)
        state.predictions_rejected = max(state.predictions_rejected, 0)
        for name in VOIDED:
            setattr(state, name, [event for event in getattr(state, name) if event.step <= step])
        for name in VOIDED_AT:
            setattr(state, name, [event for event in getattr(state, name) if event.step < step])
        state.checkpoints = [event for event in state.checkpoints if checkpoint_step(event) <= step]
        state.last_step = state.recent_steps[-1] if state.recent_steps else None
        state.tokens_seen = state.last_step.tokens_seen if state.last_step else None
        self._void_spans(step)

    def _void_spans(self, step: int) -> None:
        kept: list[PhaseSpan] = []
        for span in self.state.spans:
            end = span.end_step if span.end_step is not None else span.start_step
            if end > step:
                self._tally(span.phase, 0.0, max(span.start_step, step) - end)
            if span.start_step < step:
                kept.append(msgspec.structs.replace(span, end_step=min(end, step)))
        self.state.spans = kept
        self.state.phase = kept[-1].phase if kept else None

    def _begin_attempt(self, event: schema.RunStarted | schema.RunResumed) -> None:
        state = self.state
        elapsed_s = state.elapsed_s(state.last_mono_s)
        self._close_span(state.step, elapsed_s)
        if isinstance(event, schema.RunResumed):
            self._void_after(event.from_step)
        state.elapsed_before_s = elapsed_s
        state.attempt_mono_s, state.paused_s, state.paused_mono_s = event.mono_s, 0.0, None
        state.is_paused, state.finished = False, None
        state.started = state.started or event
        state.attempt_started = event
        state.step = event.from_step
        if event.max_steps is not None:
            state.max_steps = event.max_steps
        if state.phase is not None:
            self._ring("spans", PhaseSpan(state.phase, event.from_step, elapsed_s, reason="resumed"))
        self._ring("attempts", event)

    # Rare events

    def _add_rare(self, event: AnyEvent) -> None:
        self._note_steps()  # a pause or a new phase changes what the steps before it would mean
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)
            self._count(event.__struct_config__.tag)  # type: ignore[arg-type]

    def _add_phase_changed(self, event: schema.PhaseChanged) -> None:
        self.state.step = event.step
        self._enter_phase(event.to_phase, event.step, event.mono_s, event.reason, event.planned_steps)

    def _add_finished(self, event: schema.RunFinished) -> None:
        state = self.state
        state.finished, state.is_paused = event, False
        if state.is_before_attempt(event):
            self._close_span(state.step, state.elapsed_s(state.last_mono_s))
        else:
            state.step = event.step
            self._close_span(event.step, state.elapsed_s(event.mono_s))
        self._ring("finishes", event)

    def _add_paused(self, event: schema.Paused) -> None:
        if not self.state.is_paused:
            self.state.is_paused, self.state.paused_mono_s = True, event.mono_s
        self._ring("pauses", event)

    def _add_resumed(self, event: schema.Resumed) -> None:
        state = self.state
        if state.paused_mono_s is not None:
            state.paused_s += max(event.mono_s - state.paused_mono_s, 0.0)
        state.is_paused, state.paused_mono_s = False, None
        self._ring("pauses", event)

    def _add_eval(self, event: schema.Eval) -> None:
        self._ring("evals", event)
        if event.split != "val" or event.loss is None:
            return
        self.series["val_loss"].append(event.step, event.loss)
        best = self.state.best_evals
        if not best or best[-1].loss is None or event.loss < best[-1].loss:
            self._ring("best_evals", event)

    def _add_prediction(self, event: schema.Prediction) -> None:
        self.state.step = event.step
        self.state.predictions_accepted += event.accepted
        self.state.predictions_rejected += not event.accepted
        self.state.prediction_tally.count(event)
        self.state.prediction_s += event.duration_s or 0.0
        self._ring("predictions", event)
        self.series["predicted_loss"].append(event.step, event.predicted_loss)

    def _add_correction(self, event: schema.Correction) -> None:
        self.state.step = event.step
        self.state.rollbacks += event.rolled_back
        self._ring("corrections", event)

    def _add_micro_correction(self, event: schema.MicroCorrection) -> None:
        self.state.rollbacks += event.rolled_back
        self._ring("micro_corrections", event)

    def _add_config_changed(self, event: schema.ConfigChanged) -> None:
        if event.key == "train.max_steps" and isinstance(event.new, int) and 0 <= event.new <= 2**53:
            self.state.max_steps = event.new
        self._ring("config_changes", event)

    def _add_offload(self, event: schema.Offload) -> None:
        total = self.state.offload_total(event.op, event.phase)
        total.count += 1
        total.num_bytes += event.num_bytes
        total.freed_bytes += event.freed_bytes
        total.duration_s += event.duration_s
        total.overlapped_s += event.overlapped_s
        if event.duration_s > 0:
            self.series[OFFLOAD_SERIES].append(event.step, event.num_bytes / event.duration_s)
        offloads = self.state.offloads
        offloads.append(event)
        if len(offloads) >= 2 * RING_SIZES["offloads"]:
            del offloads[: -RING_SIZES["offloads"]]

    def _note_memories(self, memories: Sequence[schema.Memory]) -> None:
        state = self.state
        state.last_memory = memories[-1]
        for peak, names in _PEAKS.items():
            known = [value for event in memories for name in names if (value := getattr(event, name)) is not None]
            old = getattr(state, peak)
            setattr(state, peak, max(known if old is None else [*known, old], default=None))


_PEAKS = {
    "peak_allocated_bytes": ("allocated_bytes", "peak_allocated_bytes"),
    "peak_reserved_bytes": ("reserved_bytes",),
    "peak_host_rss_bytes": ("host_rss_bytes", "host_peak_rss_bytes"),
}


def _to_ring(name: str) -> Callable[[Fold, Any], None]:
    return lambda fold, event: fold._ring(name, event)


_HANDLERS: dict[type, Callable[[Fold, Any], None]] = {
    schema.RunStarted: Fold._begin_attempt,
    schema.RunResumed: Fold._begin_attempt,
    schema.PhaseChanged: Fold._add_phase_changed,
    schema.RunFinished: Fold._add_finished,
    schema.Paused: Fold._add_paused,
    schema.Resumed: Fold._add_resumed,
    schema.Eval: Fold._add_eval,
    schema.Prediction: Fold._add_prediction,
    schema.Correction: Fold._add_correction,
    schema.MicroCorrection: Fold._add_micro_correction,
    schema.ConfigChanged: Fold._add_config_changed,
    schema.Divergence: _to_ring("divergences"),
    schema.CurriculumStage: _to_ring("curriculum_stages"),
    schema.CheckpointSaved: _to_ring("checkpoints"),
    schema.ControlAck: _to_ring("control_acks"),
    schema.Sample: _to_ring("samples"),
    schema.Warning: _to_ring("warnings"),
    schema.Error: _to_ring("errors"),
}
