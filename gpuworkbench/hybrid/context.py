"""What the hybrid trainer works on: given by the training loop, so that it imports none of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.hybrid.probe import Forward
from gpuworkbench.memory.disk_copies import DiskCopies
from gpuworkbench.memory.host_arena import HostMemory
from gpuworkbench.memory.strategy import Strategy
from gpuworkbench.memory.weights import Weights
from gpuworkbench.models.base import LanguageModel


class BadStep(Protocol):
    """The first step whose loss or gradient was no number."""

    @property
    def step(self) -> int:
        """The true step."""

    @property
    def what(self) -> str:
        """loss, or gradient norm."""

    @property
    def value(self) -> float:
        """NaN or an infinity."""


class PhaseLog(Protocol):
    """Who is told of phases: the log and every memory strategy."""

    current: str

    def change(self, step: int, phase: str, reason: str, planned_steps: int | None = None) -> None:
        """The steps after `step` belong to `phase`."""


class HybridContext(NamedTuple):
    """The run as the hybrid trainer sees it."""

    config: RunConfig
    max_steps: int
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    weights: Weights
    forward: Forward
    probe_sequences: Sequence[tuple[Tensor, Tensor]]  # x and y (1, T) each, never trained on
    device: torch.device
    strategies: Sequence[Strategy]
    phases: PhaseLog
    emit: Callable[..., Any]  # (event class, step=..., **fields)
    step: Callable[[], int]  # completed true steps
    flush: Callable[[], BadStep | None]  # reads the scalars of all steps, and tells `observe` of them
    host: HostMemory | None = None  # where predictor state and undo copies lie, if not on the device
    undo_on_disk: DiskCopies | None = None  # where the copies that undo a jump go, if not in memory
