"""Everything the loop needs to go on, as named parts that go into a checkpoint and come back bit for bit.

See gpuworkbench/parts.py for what a part is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpuworkbench.errors import CheckpointError
from gpuworkbench.memory.strategy import Strategy
from gpuworkbench.parts import Part, check_names
from gpuworkbench.training.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

STATE_VERSION = 1


class ModelState:
    """Weights and buffers; a tied weight is stored once."""

    version = 1

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _named(self) -> dict[str, torch.Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def state(self) -> Part:
        """Live tensors by name."""
        tensors = {name: tensor.detach() for name, tensor in self._named().items()}
        return Part(tensors, finite=frozenset(name for name, _ in self.model.named_parameters()))

    def load(self, part: Part) -> None:
        """Copy into the existing tensors, so that memory layout and aliases stay."""
        named = self._named()
        check_names("tensors", named, part.tensors)
        with torch.no_grad():
            for name, tensor in named.items():
                saved = part.tensors[name]
                if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                    raise CheckpointError(
                        f"tensor {name}: {saved.dtype} {tuple(saved.shape)} in the checkpoint, "
                        f"{tensor.dtype} {tuple(tensor.shape)} in the run"
                    )
                tensor.copy_(saved)


class OptimizerState:
    """The optimizer's state by parameter name."""

    version = 1

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, strategies: Sequence[Strategy] = ()) -> None:
        """`strategies` may have moved the state elsewhere."""
        self.model = model
        self.optimizer = optimizer
        self.strategies = strategies

    def state(self) -> Part:
        """Live tensors, flat names."""
        tensors = optimizer_state_by_name(self.model, self.optimizer)
        for strategy in self.strategies:
            tensors = {name: strategy.resident(tensor) for name, tensor in tensors.items()}
        return Part(tensors)

    def load(self, part: Part) -> None:
        """Restore in place."""
        for strategy in self.strategies:
            strategy.before_load()
        load_optimizer_state_by_name(self.model, self.optimizer, part.tensors)


class RngState:
    """torch's global generators: CPU, and the CUDA device in use. Data order and sampling have their own."""

    version = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state(self) -> Part:
        """Generator states as byte tensors."""
        tensors = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["cuda"] = torch.cuda.get_rng_state(self.device)
        return Part(tensors)

    def load(self, part: Part) -> None:
        """Set the generators; a run that moves between CPU and card keeps what applies."""
        torch.set_rng_state(part.tensors["cpu"])
        if self.device.type == "cuda" and "cuda" in part.tensors:
            torch.cuda.set_rng_state(part.tensors["cuda"], self.device)


class ScalerState:
    """The fp16 loss scaler, where there is one."""

    version = 1

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler

    def state(self) -> Part:
        """Scale and growth counters; empty while the scaler is disabled."""
        return Part(values=dict(self.scaler.state_dict()))

    def load(self, part: Part) -> None:
        """Restore the scale."""
        if part.values:
            self.scaler.load_state_dict(part.values)


@dataclass
class Progress:
    """The counters of a run. `sequences_seen`, in windows of train.seq_len tokens that have been read to their end, is
    the data cursor: order is a pure function of it, and the size of steps and parts one of `tokens_seen`. Of the next
    `begun_windows` windows `begun_tokens` tokens each have been read: 0 but in the midst of a curriculum's group."""

    step: int = 0
    sequences_seen: int = 0
    tokens_seen: int = 0
    best_val_loss: float | None = None
    best_step: int | None = None
    improved_val_loss: float | None = None  # of the last validation that counted for early stopping
    evals_without_improvement: int = 0
    last_eval_step: int = 0
    last_sample_step: int = 0
    rollbacks: int = 0
    skipped_sequences: int = 0
    begun_windows: int = 0
    begun_tokens: int = 0

    version = 1

    def state(self) -> Part:
        """Every counter by name."""
        return Part(values={name: getattr(self, name) for name in self.__dataclass_fields__})

    def load(self, part: Part) -> None:
        """Restore every counter. Raises CheckpointError for what is no count."""
        values = {**_LATER_COUNTERS, **part.values}
        check_names("counters", self.__dataclass_fields__, values)
        for name, value in values.items():
            if not _is_counter(name, value):
                raise CheckpointError(f"counter {name} is {value!r}")
            setattr(self, name, value)


_LATER_COUNTERS = {"begun_windows": 0, "begun_tokens": 0}  # not in the oldest checkpoints


def _is_counter(name: str, value: Any) -> bool:
    if name in ("best_val_loss", "improved_val_loss"):
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    if value is None:
        return name == "best_step"
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
