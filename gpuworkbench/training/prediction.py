"""Gives a run its hybrid trainer and its weights' average, where they are on; gpuworkbench/hybrid does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.context import HybridContext
from gpuworkbench.hybrid.signals import StepSignals
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.hybrid.weight_average import WeightAverage
from gpuworkbench.memory.disk_copies import DiskCopies
from gpuworkbench.memory.host_arena import HostMemory
from gpuworkbench.training.batches import probe_sequences
from gpuworkbench.training.telemetry import Pending

if TYPE_CHECKING:
    from gpuworkbench.training.setup import TrainingRun


def add_prediction(run: TrainingRun) -> None:
    """Both as configured, their state in the same place."""
    host = None
    if run.config.hybrid.state_device == "host":
        host = HostMemory(run.device.torch_device, lambda: warn_unpinned(run))
    add_hybrid(run, host)
    add_average(run, host)


def warn_unpinned(run: TrainingRun) -> None:
    """Say it now, or where a checkpoint is being restored, once the attempt is announced."""
    code, message = "not_pinned", "host memory for the state of prediction could not be pinned (the driver refuses)"
    hint = "it is pageable: slower, and the same values; WSL2 and `ulimit -l` limit pinned memory, see docs/hybrid.md"
    if run.start_event_fields:
        run.events.emit(WarningEvent, step=run.progress.step, code=code, message=message, hint=hint)
    else:
        run.notices.append((code, f"{message}; {hint}"))


def add_hybrid(run: TrainingRun, host: HostMemory | None) -> None:
    """The hybrid trainer as configured: it listens to the run's steps and is saved with it."""
    config, progress, device = run.config, run.progress, run.device.torch_device
    if not config.hybrid.enabled:
        return
    trainer = HybridTrainer(
        HybridContext(
            config=config,
            max_steps=run.max_steps,
            model=run.model,
            optimizer=run.optimizer,
            weights=run.weights,
            forward=run.forward,
            probe_sequences=probe_sequences(
                run.data.tokens("train"), config.train_seq_len, config.hybrid.probe_sequences, device
            ),
            device=device,
            strategies=run.strategies,
            phases=run.phases,
            emit=run.events.emit,
            step=lambda: progress.step,
            flush=run.telemetry.flush,
            host=host,
            undo_on_disk=DiskCopies(run.paths.undo) if config.hybrid.undo_storage == "disk" else None,
        )
    )

    def listen(pending: Pending, loss: float, grad_norm: float, moments: Sequence[float]) -> None:
        trainer.observe(
            StepSignals(pending.step, run.max_steps, pending.phase, loss, grad_norm, pending.lr, *moments),
        )

    run.hybrid = trainer
    run.telemetry.listener = listen
    run.parts.update(trainer.parts())


def add_average(run: TrainingRun, host: HostMemory | None) -> None:
    """The weights' average as configured; it needs no hybrid trainer."""
    decay = run.config.hybrid.ema_eval_decay
    if not decay:
        return
    body = Body(run.model, run.weights, run.device.torch_device, host)
    run.average = WeightAverage(body, decay)
    run.parts.update(run.average.parts())
