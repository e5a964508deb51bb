"""Every event type, its fields and units. The log's readers and writers share these structs.

Envelope, on every line: `v` (schema version), `seq` (0, 1, 2, ... within a run), `time_unix_s` (wall clock),
`mono_s` (monotonic clock of that attempt's process), `attempt` (1, then +1 per resume), `step` (completed optimizer
steps), `type`. JSON has no NaN or Inf: such a value is `null` and its field name stands in `nonfinite`.
Fields may be added, none renamed.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

EVENT_VERSION = 1

# A log is foreign input. Bounds here are checked by the decoder at C speed, so that no reader meets an integer that
# overflows a float, or a negative step.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Status = Annotated[int, Meta(ge=-(2**31), le=2**31)]


class Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    """The envelope. `nonfinite` stands on a line only where a value was NaN or Inf."""

    v: Count
    seq: Count
    time_unix_s: float
    mono_s: float
    attempt: Count
    step: Count
    nonfinite: tuple[str, ...] | UnsetType = UNSET


class RunStarted(Event, frozen=True, kw_only=True, tag="run_started"):
    """The first event of a run. `max_tokens`: seen when `max_steps` are done, where steps differ in size."""

    run_id: str
    preset: str
    pid: Count
    config_sha256: str
    device: str
    card: str | None = None
    simulated_card: str | None = None
    from_step: Count = 0
    max_steps: Count | None = None
    n_params: Count | None = None
    is_cpu_twin: bool = False
    init_from: str | None = None  # the folder whose weights this attempt began with
    init_tensors: Count | None = None
    init_dtypes: tuple[str, ...] = ()  # in what they were stored, in safetensors' spelling
    max_tokens: Count | None = None
    predicted_bytes: Count | None = None  # at the peak: the allocator's on a card, the process's where there is none


class RunResumed(Event, frozen=True, kw_only=True, tag="run_resumed"):
    """The first event of every later attempt; earlier attempts' points beyond `from_step` are void."""

    run_id: str
    preset: str
    pid: Count
    config_sha256: str
    device: str
    from_step: Count
    card: str | None = None
    simulated_card: str | None = None
    max_steps: Count | None = None
    n_params: Count | None = None
    is_cpu_twin: bool = False
    init_from: str | None = None  # the folder whose weights this attempt began with
    init_tensors: Count | None = None
    init_dtypes: tuple[str, ...] = ()  # in what they were stored, in safetensors' spelling
    max_tokens: Count | None = None
    predicted_bytes: Count | None = None


class PhaseChanged(Event, frozen=True, kw_only=True, tag="phase_changed"):
    """The trainer moves from one phase (warmup, full, predict, correct) to another."""

    from_phase: str | None
    to_phase: str
    reason: str
    planned_steps: Count | None = None


class CurriculumStage(Event, frozen=True, kw_only=True, tag="curriculum_stage"):
    """From here on steps have another size: `effective_batch_size` sequences of `seq_len` tokens, until
    `until_tokens` are seen (None: to the end). Also at the beginning of every attempt that has a curriculum."""

    seq_len: Count
    effective_batch_size: Count
    grad_accum_steps: Count
    tokens_seen: Count
    until_tokens: Count | None = None


class Step(Event, frozen=True, kw_only=True, tag="step"):
    """One optimizer step: training loss in nats per token, before the update of this step.

    It held `effective_batch_size` sequences of `seq_len` tokens.
    """

    phase: str
    loss: float | None
    perplexity: float | None
    grad_norm: float | None
    lr: float | None
    tokens_seen: Count
    tokens_per_s: float | None
    step_time_s: float | None
    precision: str
    effective_batch_size: Count
    micro_batch_index: Count
    grad_accum_steps: Count
    precision_switches: Count = 0
    scored_tokens: Count | None = None  # what the loss is the mean of, where an answer mask leaves tokens out
    seq_len: Count | None = None


class Eval(Event, frozen=True, kw_only=True, tag="eval"):
    """A validation: token-weighted mean loss in nats."""

    split: str
    loss: float | None
    perplexity: float | None
    tokens: Count
    duration_s: float
    is_best: bool = False


class Memory(Event, frozen=True, kw_only=True, tag="memory"):
    """Memory in use, in bytes. Allocator fields are `null` where there is no CUDA device."""

    host_rss_bytes: Count | None
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    peak_allocated_bytes: Count | None = None
    limit_bytes: Count | None = None
    host_peak_rss_bytes: Count | None = None


class Offload(Event, frozen=True, kw_only=True, tag="offload"):
    """One transfer between card and host; `overlapped_s` of `duration_s` were hidden behind compute."""

    op: str
    target: str
    phase: str
    num_bytes: Count
    freed_bytes: Count
    duration_s: float
    overlapped_s: float


class Prediction(Event, frozen=True, kw_only=True, tag="prediction"):
    """One predicted jump; `predicted_loss` is a prediction and never a measured loss."""

    predictor: str
    exploration: bool
    horizon_steps: Count
    confidence: float | None
    predicted_loss: float | None
    probe_before: float | None
    probe_after: float | None
    accepted: bool
    delta_norm: float | None = None
    cosine: float | None = None
    duration_s: float | None = None  # probes and undoing included


class Correction(Event, frozen=True, kw_only=True, tag="correction"):
    """True steps after a jump compared with what was predicted."""

    actual_loss: float | None
    predicted_loss: float | None
    residual_norm: float | None
    rolled_back: bool


class MicroCorrection(Event, frozen=True, kw_only=True, tag="micro_correction"):
    """One true step inside a predicted stretch."""

    actual_loss: float | None
    predicted_loss: float | None
    residual_norm: float | None
    rolled_back: bool


class Divergence(Event, frozen=True, kw_only=True, tag="divergence"):
    """The divergence monitor saw a signal and acted."""

    level: str
    signal: str
    value: float | None
    threshold: float | None
    action: str


class CheckpointSaved(Event, frozen=True, kw_only=True, tag="checkpoint_saved"):
    """A checkpoint is durable. Only this event acknowledges it. `stall_s` is what training waited."""

    path: str
    num_bytes: Count
    duration_s: float
    stall_s: float


class ConfigChanged(Event, frozen=True, kw_only=True, tag="config_changed"):
    """A key changed, at a resume or live."""

    key: str
    old: Any
    new: Any
    reason: str = ""  # where the trainer changed it by itself


class ControlAck(Event, frozen=True, kw_only=True, tag="control_ack"):
    """The trainer read the control file `id` and did (or refused) what it asked."""

    id: str
    command: str
    ok: bool
    message: str = ""


class Paused(Event, frozen=True, kw_only=True, tag="paused"):
    """Training waits; the state is in memory."""


class Resumed(Event, frozen=True, kw_only=True, tag="resumed"):
    """Training goes on after a pause, in the same process."""

    paused_s: float | None = None


class Sample(Event, frozen=True, kw_only=True, tag="sample"):
    """Text the model wrote."""

    prompt: str
    text: str


class Warning(Event, frozen=True, kw_only=True, tag="warning"):
    """Something a person should know that did not stop the run."""

    code: str
    message: str
    hint: str = ""


class LiveTensor(Struct, frozen=True, kw_only=True):
    """`count` tensors of one name, shape and type that were in memory, `num_bytes` together."""

    kind: str
    name: str
    shape: tuple[Count, ...]
    dtype: str
    num_bytes: Count
    count: Count = 1


class Error(Event, frozen=True, kw_only=True, tag="error"):
    """Why the attempt failed. `kind`: config, cuda_oom, nonfinite, data, io, internal.

    Where memory was full (cuda_oom, the host's too): `where` (forward, backward, optimizer step, validation, ...),
    `why` (too_big, fragmentation, other_process), `requested_bytes`, the `biggest` tensors in memory, the largest
    first, and `fix`: the keys that `--apply-fix` sets, empty where no change is known to help.
    """

    kind: str
    message: str
    hint: str = ""
    where: str = ""
    why: str = ""
    requested_bytes: Count | None = None
    biggest: tuple[LiveTensor, ...] = ()
    fix: dict[str, bool | int | str] = {}


class RunFinished(Event, frozen=True, kw_only=True, tag="run_finished"):
    """The last event of an attempt. `status`: completed, stopped, failed."""

    status: str
    exit_code: Status
    reason: str


AnyEvent = (
    RunStarted
    | RunResumed
    | PhaseChanged
    | CurriculumStage
    | Step
    | Eval
    | Memory
    | Offload
    | Prediction
    | Correction
    | MicroCorrection
    | Divergence
    | CheckpointSaved
    | ConfigChanged
    | ControlAck
    | Paused
    | Resumed
    | Sample
    | Warning
    | Error
    | RunFinished
)
EVENT_TYPES: dict[str, type[Event]] = {cls.__struct_config__.tag: cls for cls in AnyEvent.__args__}
