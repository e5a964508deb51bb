"""What the loop measures becomes events here. On CUDA the scalars stay on the card until a logging step."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import psutil
import torch

from gpuworkbench.config.curriculum import Stage
from gpuworkbench.events.schema import Memory, Step
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.memory.phase_precision import PhasePrecision
from gpuworkbench.training.device import Device

MEMORY_INTERVAL_S = 1.0
MAX_EXPONENT = 700.0  # exp of more is not a float


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is no float."""
    return math.exp(loss) if loss < MAX_EXPONENT else math.inf


class Pending(NamedTuple):
    """One step whose scalars may still be on the card."""

    step: int
    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float
    tokens_seen: int
    phase: str
    stage: Stage
    scored: torch.Tensor | None = None  # tokens the loss is the mean of, where an answer mask leaves some out
    moments: torch.Tensor | None = None  # (4,) statistics of the optimizer's moments, where somebody reads them


class Listener(Protocol):
    """Who is told of steps."""

    def __call__(self, pending: Pending, loss: float, grad_norm: float, moments: Sequence[float]) -> None:
        """One step, in order; `loss` is NaN where it had no scored token, `moments` empty where nobody asked."""


class Computed(NamedTuple):
    """In what a step was computed: when its scalars are read, the phase may be another."""

    precision: str
    switches: int  # so far
    scaler_skips_inf: bool


class NonfiniteStep(NamedTuple):
    """The first step whose loss or gradient norm was NaN or infinite."""

    step: int
    what: str
    value: float


class StepTelemetry:
    """Turns finished steps into `step` events, in order, and samples memory about once a second.

    Clocks here feed the screen only; no decision of the run depends on them.
    """

    def __init__(
        self,
        events: EventWriter,
        device: Device,
        *,
        precisions: PhasePrecision,
        interval_steps: int,
    ) -> None:
        self.events = events
        self.device = device
        self.precisions = precisions
        self.interval_steps = interval_steps if device.torch_device.type == "cuda" else 1
        self.listener: Listener | None = None  # told of every step when its scalars are read
        self._pending: list[tuple[Pending, Computed]] = []
        self._window_started_s = time.perf_counter()
        self._memory_sampled_s = -math.inf
        self._process = psutil.Process()

    def start_window(self) -> None:
        """Start timing anew: what happened since the last step (validation, a pause) is not step time."""
        self._window_started_s = time.perf_counter()

    def record(self, pending: Pending) -> NonfiniteStep | None:
        """Take one step; flushes on logging steps. Returns what `flush` returns."""
        precision = self.precisions.current
        computed = Computed(precision.name, self.precisions.switches, precision.needs_scaler)
        self._pending.append((pending, computed))
        if len(self._pending) >= self.interval_steps:
            return self.flush()
        return None

    def flush(self) -> NonfiniteStep | None:
        """Read the scalars (one host-device sync), emit the events, report the first non-finite step."""
        if not self._pending:
            return None
        scalars = torch.stack([torch.stack((p.loss.float(), p.grad_norm.float())) for p, _ in self._pending]).tolist()
        counts = [p.scored for p, _ in self._pending if p.scored is not None]
        scored = iter(torch.stack(counts).tolist() if counts else ())
        statistics = [p.moments for p, _ in self._pending if p.moments is not None]
        moments = iter(torch.stack(statistics).tolist() if statistics else ())
        now = time.perf_counter()
        elapsed_s = now - self._window_started_s
        step_time_s = elapsed_s / len(self._pending)
        tokens = sum(pending.stage.tokens_per_step for pending, _ in self._pending)
        tokens_per_s = tokens / elapsed_s if elapsed_s > 0 else None
        self._window_started_s = now
        bad: NonfiniteStep | None = None
        for (pending, computed), (loss, grad_norm) in zip(self._pending, scalars, strict=True):
            scored_tokens = None if pending.scored is None else next(scored)
            if self.listener is not None:
                read = () if pending.moments is None else next(moments)
                self.listener(pending, math.nan if scored_tokens == 0 else loss, grad_norm, read)
            self._emit(pending, computed, (loss, grad_norm), (step_time_s, tokens_per_s), scored_tokens)
            if bad is None and not math.isfinite(loss):
                bad = NonfiniteStep(pending.step, "loss", loss)
            elif bad is None and not math.isfinite(grad_norm) and not computed.scaler_skips_inf:
                bad = NonfiniteStep(pending.step, "gradient norm", grad_norm)
        self._pending.clear()
        if now - self._memory_sampled_s >= MEMORY_INTERVAL_S:
            self._memory_sampled_s = now
            self.sample_memory(pending.step)
        return bad

    def sample_memory(self, step: int) -> None:
        """Emit a `memory` event: the allocator's view on CUDA, the process's on the host."""
        peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rss = self._process.memory_info().rss
        if self.device.torch_device.type != "cuda":
            self.events.emit(Memory, step=step, host_rss_bytes=rss, host_peak_rss_bytes=peak_rss)
            return
        cuda = torch.cuda
        self.events.emit(
            Memory,
            step=step,
            host_rss_bytes=rss,
            host_peak_rss_bytes=peak_rss,
            allocated_bytes=cuda.memory_allocated(),
            reserved_bytes=cuda.memory_reserved(),
            peak_allocated_bytes=cuda.max_memory_allocated(),
            limit_bytes=self.device.limit_bytes,
        )

    def _emit(
        self,
        pending: Pending,
        computed: Computed,
        scalars: tuple[float, float],
        rates: tuple[float, float | None],
        scored_tokens: int | None,
    ) -> None:
        has_loss = scored_tokens != 0  # a step that met no scored token has none
        loss, grad_norm = scalars
        step_time_s, tokens_per_s = rates
        self.events.emit(
            Step,
            step=pending.step,
            phase=pending.phase,
            loss=loss if has_loss else None,
            perplexity=(perplexity(loss) if math.isfinite(loss) else loss) if has_loss else None,
            scored_tokens=scored_tokens,
            grad_norm=grad_norm,
            lr=pending.lr,
            tokens_seen=pending.tokens_seen,
            tokens_per_s=tokens_per_s,
            step_time_s=step_time_s,
            precision=computed.precision,
            precision_switches=computed.switches,
            effective_batch_size=pending.stage.sequences,
            micro_batch_index=pending.stage.grad_accum_steps,
            grad_accum_steps=pending.stage.grad_accum_steps,
            seq_len=pending.stage.seq_len,
        )
