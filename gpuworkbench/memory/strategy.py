"""What a memory strategy is: an object with hooks that the trainer calls in a fixed order. Each hook may do nothing.

Built: `from_config`, `apply` (the model has no optimizer yet), `attach` (it has). Running: `enter_phase` whenever the
phase changes, and around each true optimizer step `before_step`, `grad_norm`, `before_update`, `after_step`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.parts import Part


class StrategyContext(NamedTuple):
    """What a strategy works on."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    device: torch.device
    emit: Callable[..., Any]  # (event class, step=..., **fields)
    step: Callable[[], int]  # completed optimizer steps


class Strategy:
    """Base of the strategies. One with `has_state` is saved with every checkpoint as part `memory_<name>`."""

    name: ClassVar[str]
    has_state: bool = False
    version = 1

    @classmethod
    def from_config(cls, config: RunConfig) -> Strategy | None:
        """The strategy as configured, or None where it is switched off."""
        raise NotImplementedError

    def apply(self, model: LanguageModel) -> None:
        """Change how the model computes or is stored. Once, before the optimizer is built."""

    def attach(self, context: StrategyContext) -> None:
        """Take hold of the optimizer. Once, before a checkpoint is restored."""

    def enter_phase(self, phase: str, planned_steps: int | None) -> None:
        """The steps from here on belong to `phase` (warmup, full, predict, correct)."""

    def virtual_step(self, remaining_to_true_step: int) -> None:
        """The hybrid trainer is about to make a virtual step of a predicted phase, one of a stretch that ends with a
        true step (a micro-correction, or the next phase): `remaining_to_true_step` counts down to 1, this one included.

        The work of a jump that stands for several virtual steps (proposal, update, probes) follows the first call.
        """

    def before_step(self) -> None:
        """A true optimizer step begins: what it needs is where it computes when this returns."""

    def grad_norm(self) -> Tensor | None:
        """The norm of this step's gradients where they are gone already, 0-dim on the device; else None."""
        return None

    def before_update(self) -> None:
        """The gradients are complete and clipped; the optimizer's update comes next."""

    def after_step(self) -> None:
        """The update is done and the gradients are gone."""

    def before_load(self) -> None:
        """A checkpoint is about to be loaded into model and optimizer: what it overwrites is where it belongs."""

    def resident(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of a tensor of the optimizer's state, wherever they are now; itself where it is untouched."""
        return tensor

    def state(self) -> Part:
        """What a resume needs; see `has_state`."""
        return Part()

    def load(self, part: Part) -> None:
        """Restore in place. Raises CheckpointError."""
