"""`RunState`: everything a screen or the headless renderer shows about a run, frozen, from events alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from gpuworkbench.events import schema
from gpuworkbench.events.fold import SERIES
from gpuworkbench.events.fold_state import OffloadTotal, PhaseSpan, Tally
from gpuworkbench.events.prediction_tally import PredictionTally
from gpuworkbench.events.series import DecimatedSeries, Points

_EMPTY_SERIES: Mapping[str, Points] = MappingProxyType({name: DecimatedSeries().points() for name in SERIES})
_EMPTY: Mapping[str, int] = MappingProxyType({})


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its log tells it. Unknown or non-finite is `None`, never 0. Lists are oldest first and bounded.

    Whether the process lives is not in the log: see `runs` for the status by evidence. `elapsed_s` is seconds of
    training over all attempts, without pauses and without the time between attempts.
    """

    # Who and where
    run_id: str | None = None
    preset: str | None = None
    device: str | None = None
    card: str | None = None
    simulated_card: str | None = None
    is_cpu_twin: bool = False
    n_params: int | None = None
    predicted_bytes: int | None = None  # at the peak: the allocator's on a card, the process's where there is none
    pid: int | None = None
    config_sha256: str | None = None
    attempt: int = 0
    from_step: int = 0

    # How far
    n_events: int = 0
    is_started: bool = False
    is_paused: bool = False
    is_finished: bool = False
    finish_status: str | None = None
    finish_reason: str | None = None
    exit_code: int | None = None
    step: int = 0
    max_steps: int | None = None
    tokens_seen: int | None = None
    first_time_unix_s: float | None = None
    last_time_unix_s: float | None = None
    elapsed_s: float = 0.0
    eta_s: float | None = None

    # Phases
    phase: str | None = None
    spans: tuple[PhaseSpan, ...] = ()
    phase_tallies: Mapping[str, Tally] = MappingProxyType({})

    # Metrics
    last_step: schema.Step | None = None
    tokens_per_s: float | None = None
    step_time_s: float | None = None
    nonfinite_losses: int = 0
    last_eval: schema.Eval | None = None
    best_eval: schema.Eval | None = None
    last_memory: schema.Memory | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_host_rss_bytes: int | None = None
    series: Mapping[str, Points] = _EMPTY_SERIES

    # What happened
    evals: tuple[schema.Eval, ...] = ()
    checkpoints: tuple[schema.CheckpointSaved, ...] = ()
    last_checkpoint: schema.CheckpointSaved | None = None
    last_checkpoint_step: int | None = None
    unsaved_since_step: int | None = None
    samples: tuple[schema.Sample, ...] = ()
    warnings: tuple[schema.Warning, ...] = ()
    errors: tuple[schema.Error, ...] = ()
    config_changes: tuple[schema.ConfigChanged, ...] = ()
    control_acks: tuple[schema.ControlAck, ...] = ()
    curriculum_stages: tuple[schema.CurriculumStage, ...] = ()
    attempts: tuple[schema.RunStarted | schema.RunResumed, ...] = ()
    finishes: tuple[schema.RunFinished, ...] = ()
    pauses: tuple[schema.Paused | schema.Resumed, ...] = ()
    counts: Mapping[str, int] = _EMPTY

    # Transfers and predictions
    offload_totals: tuple[OffloadTotal, ...] = ()
    offloads: tuple[schema.Offload, ...] = ()
    predictions: tuple[schema.Prediction, ...] = ()
    predictions_accepted: int = 0
    predictions_rejected: int = 0
    prediction_tally: PredictionTally = msgspec.field(default_factory=PredictionTally)  # a copy: nobody writes to it
    prediction_s: float = 0.0  # jumps, their probes and their undoing
    corrections: tuple[schema.Correction, ...] = ()
    micro_corrections: tuple[schema.MicroCorrection, ...] = ()
    divergences: tuple[schema.Divergence, ...] = ()
    rollbacks: int = 0

    @property
    def loss(self) -> float | None:
        """The last measured training loss."""
        return self.last_step.loss if self.last_step else None

    @property
    def is_simulated(self) -> bool:
        """Whether the numbers are not those of a real card of the preset's kind."""
        return self.is_cpu_twin or self.simulated_card is not None

    def notable(self) -> list[schema.Event]:
        """What happened, in the order of the log: every kept event that is not a step, memory or transfer."""
        kept = (
            *self.attempts,
            *self.finishes,
            *self.pauses,
            *self.evals,
            *self.checkpoints,
            *self.samples,
            *self.warnings,
            *self.errors,
            *self.config_changes,
            *self.control_acks,
            *self.curriculum_stages,
            *self.predictions,
            *self.corrections,
            *self.divergences,
        )
        return sorted(kept, key=lambda event: event.seq)
