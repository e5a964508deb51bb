"""Short trainings in memory, step for step what a run computes: for searches and benchmarks.

The run is built and stepped by the trainer's own functions; its log goes to a scratch directory and the losses are
taken from the events as they are emitted.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.schema import RunConfig, ScheduleConfig
from gpuworkbench.data import PreparedData
from gpuworkbench.events.schema import Correction, Eval, Event, MicroCorrection, Prediction, Step
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import begin_with_pretrained
from gpuworkbench.training.batches import TrainBatches
from gpuworkbench.training.loop import run_validation, train_one_step
from gpuworkbench.training.pretrained import make_model
from gpuworkbench.training.settings import LR_SCALE
from gpuworkbench.training.setup import MakeModel, TrainingRun, build_run

AVERAGE_SPLIT = "val_ema"
OnStep = Callable[[list[float | None]], object]  # called after each step with all losses so far


class TrialResult(NamedTuple):
    """Training losses in order (None: no number), the validation loss at the end, how it diverged ("" : it did not)."""

    losses: list[float | None]
    val_loss: float | None
    diverged: str
    seconds: float


class Measured(NamedTuple):
    """A trial with the work it took, validation left out. `cost_steps` is in optimizer steps of plain training.

    `average_val_loss` is that of the averaged weights, None without `hybrid.ema_eval_decay`.
    """

    losses: list[float | None]
    val_loss: float | None
    average_val_loss: float | None
    diverged: str
    cost_steps: float
    seconds: float
    cpu_seconds: float
    counts: dict[str, int]


class LossTap(EventWriter):
    """A writer that also keeps the training losses, the averaged weights' validation, and what jumps came to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, attempt=1)
        self.losses: list[float | None] = []
        self.average_val_loss: float | None = None
        self.counts = {"accepted": 0, "rejected": 0, "rolled_back": 0, "virtual_steps": 0}

    def emit(self, cls: type[Any], step: int, **fields: Any) -> Any:
        """As every writer's."""
        event: Event = super().emit(cls, step, **fields)
        if isinstance(event, Step):
            self.losses.append(event.loss)
        elif isinstance(event, Eval) and event.split == AVERAGE_SPLIT:
            self.average_val_loss = event.loss
        elif isinstance(event, Prediction):
            self.counts["accepted" if event.accepted else "rejected"] += 1
            self.counts["virtual_steps"] += event.horizon_steps if event.accepted else 0
        elif isinstance(event, Correction | MicroCorrection):
            self.counts["rolled_back"] += event.rolled_back
        return event


class Forwards:
    """Tokens that went through the model without a gradient."""

    probe_tokens = 0

    def __call__(self, _module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            self.probe_tokens += inputs[0].numel()


@contextmanager
def counted_forwards(run: TrainingRun) -> Iterator[Forwards]:
    """Within, the forwards of probes are counted."""
    forwards = Forwards()
    handle = run.model.register_forward_pre_hook(forwards)
    try:
        yield forwards
    finally:
        handle.remove()


def train_batches(run: TrainingRun, data: PreparedData, reserved_tokens: int) -> TrainBatches:
    """The run's batches with exactly `reserved_tokens` left out."""
    config = run.config
    return TrainBatches(
        data.tokens("train"),
        config.train_seq_len,
        config.data.seed,
        config.train.micro_batch_size,
        run.device.torch_device,
        reserved_tokens=reserved_tokens,
    )


@contextmanager
def scratch_run(
    config: RunConfig, data: PreparedData, make: MakeModel = make_model
) -> Iterator[tuple[TrainingRun, list[float | None]]]:
    """A run before its first step, and the list that its losses go to; nothing of it stays. `make` as `build_run`'s.

    Raises ConfigError where the weights that it starts from are not what they were.
    """
    with tempfile.TemporaryDirectory(prefix="gpuworkbench-trial-") as folder:
        paths = RunPaths(Path(folder))
        events = LossTap(paths.events)
        try:
            run = build_run(paths, config, data, events, HeartbeatWriter(paths.heartbeat), make=make)
            begin_with_pretrained(run)
            run.model.train()
            run.telemetry.start_window()
            yield run, events.losses
        finally:
            events.close()
            run = None  # type: ignore[assignment]
            gc.collect()  # the model goes before the next one is made
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def with_rate(config: RunConfig, lr: float, seed: int) -> RunConfig:
    """`config` at another rate and with other initial weights."""
    replace = msgspec.structs.replace
    return replace(
        config, optimizer=replace(config.optimizer, lr=lr), train=replace(config.train, seed=seed, max_epochs=None)
    )


def train_trial(config: RunConfig, data: PreparedData, on_step: OnStep = lambda losses: None) -> TrialResult:
    """Train `config` to its end and validate. Losses that are no numbers are a result, not an error."""
    started = time.perf_counter()
    with scratch_run(config, data) as (run, losses):
        bad = None
        while bad is None and run.progress.step < run.max_steps:
            bad = train_one_step(run)
            on_step(losses)
        bad = bad or run.telemetry.flush()
        if bad is None:
            run_validation(run)
        val_loss = run.progress.best_val_loss
    diverged = f"{bad.what} is {bad.value} at step {bad.step}" if bad else _end_of(losses, val_loss)
    return TrialResult(list(losses), val_loss, diverged, time.perf_counter() - started)


def measured_trial(
    config: RunConfig,
    data: PreparedData,
    on_step: Callable[[int], object] = lambda step: None,
    reserved_tokens: int = 0,
) -> Measured:
    """Train `config` to its end, validate, and say what the training took. Divergence is a result, not an error.

    `reserved_tokens` of the training split are left out of its batches: those that any of the compared trials probes
    with, so that all of them read the same data in the same order.
    """
    with scratch_run(config, data) as (run, losses):
        events = run.events
        assert isinstance(events, LossTap)
        run.train_batches = train_batches(run, data, reserved_tokens)
        bad = None
        with counted_forwards(run) as forwards:
            started, cpu_started = _clock(run), time.process_time()
            while bad is None and run.progress.step < run.max_steps:
                bad = train_one_step(run)
                if bad is not None and run.hybrid.survives(bad):
                    bad = None
                on_step(run.progress.step)
            bad = bad or run.telemetry.flush()
            seconds, cpu_seconds = _clock(run) - started, time.process_time() - cpu_started
        if bad is None:
            run_validation(run)
        val_loss = run.progress.best_val_loss
        # A forward is a third of a step: backward is twice as much (Kaplan et al. 2020, section 2.1).
        cost_steps = run.progress.step + forwards.probe_tokens / (3 * config.tokens_per_step)
    diverged = f"{bad.what} is {bad.value} at step {bad.step}" if bad else _end_of(losses, val_loss)
    return Measured(
        list(losses), val_loss, events.average_val_loss, diverged, cost_steps, seconds, cpu_seconds, events.counts
    )


def range_trial(
    config: RunConfig,
    data: PreparedData,
    lrs: Sequence[float],
    has_diverged: Callable[[Sequence[float | None]], bool],
    on_step: OnStep = lambda losses: None,
) -> TrialResult:
    """One step at each of `lrs`, ended early by `has_diverged`, each of full size: no schedule or curriculum acts."""
    started = time.perf_counter()
    replace = msgspec.structs.replace
    flat = replace(
        with_rate(config, lrs[0], config.train.seed),
        schedule=ScheduleConfig(name="constant"),
        hybrid=HybridConfig(),
    )
    flat = replace(flat, train=replace(flat.train, max_steps=len(lrs)))
    with scratch_run(flat, data) as (run, losses):
        bad = None
        for lr in lrs:
            run.settings.overridden[LR_SCALE] = lr / lrs[0]
            bad = train_one_step(run)
            on_step(losses)
            if bad is not None or has_diverged(losses):
                break
        bad = bad or run.telemetry.flush()
    return TrialResult(list(losses), None, bad.what if bad else "", time.perf_counter() - started)


def _clock(run: TrainingRun) -> float:
    """Now, when the card has done what it was given."""
    if run.device.torch_device.type == "cuda":
        torch.cuda.synchronize(run.device.torch_device)
    return time.perf_counter()


def _end_of(losses: Sequence[float | None], val_loss: float | None) -> str:
    if val_loss is None:
        return "the validation loss is no number"
    first = losses[0]
    if first is not None and len(losses) > 1 and not val_loss < first:
        return f"it ends at {val_loss:.3f}, above the {first:.3f} it began with"
    return "" if math.isfinite(val_loss) else "the validation loss is infinite"
