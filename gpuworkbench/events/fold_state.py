"""What is known of a run after any number of events, in bounded memory: the state that `fold.Fold` updates.

Plain msgspec structs, so that the index stores them as they are.
"""

from __future__ import annotations

import re
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct, field

from gpuworkbench.events import schema
from gpuworkbench.events.prediction_tally import PredictionTally

# How many events of a kind are kept, newest first to stay. Each kind has its own bound: a flood of warnings cannot
# push out the checkpoints.
RING_SIZES = {
    "evals": 512,
    "best_evals": 512,
    "checkpoints": 512,
    "samples": 64,
    "predictions": 256,
    "corrections": 256,
    "micro_corrections": 64,
    "divergences": 256,
    "config_changes": 256,
    "control_acks": 64,
    "pauses": 64,
    "warnings": 256,
    "errors": 64,
    "attempts": 256,
    "finishes": 256,
    "offloads": 64,
    "recent_steps": 64,
    "spans": 1024,
    "curriculum_stages": 64,
}
# What an attempt did beyond the step that a later one begins at is void in these.
VOIDED = (
    "divergences",
    "evals",
    "best_evals",
    "samples",
    "recent_steps",
    "curriculum_stages",
)
# These happen at a step but after its checkpoint, so that an attempt that begins there does them again.
VOIDED_AT = ("predictions", "corrections", "micro_corrections")
MAX_KEYS = 64  # phases, transfer kinds: names come from the log, which is foreign
OTHER = "other"

_CHECKPOINT_NAME = re.compile(r"step-(\d{1,15})/?$")


class PhaseSpan(Struct, frozen=True):
    """A stretch of one phase. Steps `start_step` < s <= `end_step`; seconds of training since the run's start,
    pauses and the time between attempts left out. An open span has no end yet. `planned_steps`: what the trainer
    meant it to last."""

    phase: str
    start_step: int
    start_s: float
    end_step: int | None = None
    end_s: float | None = None
    reason: str = ""
    planned_steps: int | None = None


class OffloadTotal(Struct):
    """Sums over all transfers of one `op` and `phase`."""

    op: str
    phase: str
    count: int = 0
    num_bytes: int = 0
    freed_bytes: int = 0
    duration_s: float = 0.0
    overlapped_s: float = 0.0


class Tally(Struct, frozen=True):
    """Wall seconds and steps of one phase. Seconds count redone work too; steps count only those that stand."""

    seconds: float = 0.0
    steps: int = 0


class FoldState(Struct):
    """See the module. Rings are oldest first."""

    n_events: int = 0
    first_time_unix_s: float | None = None
    last_time_unix_s: float | None = None
    last_mono_s: float | None = None
    last_seq: int = -1

    started: schema.RunStarted | schema.RunResumed | None = None
    attempt_started: schema.RunStarted | schema.RunResumed | None = None
    finished: schema.RunFinished | None = None
    is_paused: bool = False
    max_steps: int | None = None
    step: int = 0
    tokens_seen: int | None = None

    elapsed_before_s: float = 0.0
    attempt_mono_s: float | None = None
    paused_s: float = 0.0
    paused_mono_s: float | None = None

    phase: str | None = None
    phase_tallies: dict[str, Tally] = field(default_factory=dict)
    spans: list[PhaseSpan] = field(default_factory=list)

    last_step: schema.Step | None = None
    recent_steps: list[schema.Step] = field(default_factory=list)
    nonfinite_losses: int = 0

    last_memory: schema.Memory | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_host_rss_bytes: int | None = None

    offload_totals: dict[str, dict[str, OffloadTotal]] = field(default_factory=dict)
    offloads: list[schema.Offload] = field(default_factory=list)
    predictions: list[schema.Prediction] = field(default_factory=list)
    predictions_accepted: Annotated[int, Meta(ge=0)] = 0
    predictions_rejected: Annotated[int, Meta(ge=0)] = 0
    prediction_tally: PredictionTally = field(default_factory=PredictionTally)
    prediction_s: float = 0.0  # jumps, their probes and their undoing; of redone ones too
    corrections: list[schema.Correction] = field(default_factory=list)
    micro_corrections: list[schema.MicroCorrection] = field(default_factory=list)
    divergences: list[schema.Divergence] = field(default_factory=list)
    rollbacks: int = 0

    evals: list[schema.Eval] = field(default_factory=list)
    best_evals: list[schema.Eval] = field(default_factory=list)
    checkpoints: list[schema.CheckpointSaved] = field(default_factory=list)
    samples: list[schema.Sample] = field(default_factory=list)
    config_changes: list[schema.ConfigChanged] = field(default_factory=list)
    control_acks: list[schema.ControlAck] = field(default_factory=list)
    curriculum_stages: list[schema.CurriculumStage] = field(default_factory=list)
    pauses: list[schema.Paused | schema.Resumed] = field(default_factory=list)
    warnings: list[schema.Warning] = field(default_factory=list)
    errors: list[schema.Error] = field(default_factory=list)
    attempts: list[schema.RunStarted | schema.RunResumed] = field(default_factory=list)
    finishes: list[schema.RunFinished] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def elapsed_s(self, mono_s: float | None) -> float:
        """Seconds of training up to `mono_s` of the current attempt, without pauses; never negative."""
        if mono_s is None or self.attempt_mono_s is None:
            return self.elapsed_before_s
        if self.paused_mono_s is not None:
            mono_s = min(mono_s, self.paused_mono_s)
        return self.elapsed_before_s + max(mono_s - self.attempt_mono_s - self.paused_s, 0.0)

    def is_before_attempt(self, event: schema.Event) -> bool:
        """Whether the event is of a resume that was refused before it began: its state was never restored."""
        return self.attempt_started is not None and event.attempt > self.attempt_started.attempt

    def offload_total(self, op: str, phase: str) -> OffloadTotal:
        """The sums of a kind of transfer, made where missing; of all further kinds together beyond MAX_KEYS."""
        try:
            return self.offload_totals[op][phase]
        except KeyError:
            if sum(map(len, self.offload_totals.values())) >= MAX_KEYS:
                op = phase = OTHER
            return self.offload_totals.setdefault(op, {}).setdefault(phase, OffloadTotal(op, phase))

    def elapsed_column_s(self, mono_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """`elapsed_s` of many moments, (N,) float64."""
        if self.attempt_mono_s is None:
            return np.full(len(mono_s), self.elapsed_before_s)
        if self.paused_mono_s is not None:
            mono_s = np.minimum(mono_s, self.paused_mono_s)
        return self.elapsed_before_s + np.maximum(mono_s - self.attempt_mono_s - self.paused_s, 0.0)


def checkpoint_step(event: schema.CheckpointSaved) -> int:
    """The step a checkpoint holds: its name says it; it may be acknowledged a few steps later."""
    match = _CHECKPOINT_NAME.search(event.path)
    return int(match[1]) if match else event.step
