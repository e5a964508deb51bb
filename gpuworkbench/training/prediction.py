"""Gives a run its hybrid trainer and its weights' average, where they are on; gpuworkbench/hybrid does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.context import HybridContext
from gpuworkbench.hybrid.signals import StepSignals
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.hybrid.weight_average import WeightAverage
from gpuworkbench.memory.disk_copies import DiskCopies
from gpuworkbench.training.batches import probe_sequences
from gpuworkbench.training.telemetry import Pending

if TYPE_CHECKING:
    from gpuworkbench.training.setup import TrainingRun


def add_hybrid(run: TrainingRun) -> None:
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


def add_average(run: TrainingRun) -> None:
    """The weights' average as configured; it needs no hybrid trainer."""
    decay = run.config.hybrid.ema_eval_decay
    if not decay:
        return
    is_on_host = run.config.hybrid.state_device == "host"
    body = Body(run.model, run.weights, torch.device("cpu") if is_on_host else run.device.torch_device)
    run.average = WeightAverage(body, decay)
    run.parts.update(run.average.parts())
