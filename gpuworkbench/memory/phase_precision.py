"""The precision of the products in each phase: memory.precision_<phase>, and memory.precision where that is not set.

Validation is always computed in the precision of `full`, whatever the phase, so that its losses can be compared; a
probe and a true step inside a predicted phase are computed in the phase's own. The fp16 loss scaler exists where any
phase needs it, and rests with its scale kept in the phases that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import CheckpointError
from gpuworkbench.memory.precision import Precision, resolve_precision
from gpuworkbench.memory.strategy import Strategy
from gpuworkbench.parts import Part, check_names
from gpuworkbench.units import format_bytes

PHASES = ("warmup", "full", "predict", "correct")
VALIDATION_PHASE = "full"
FP32_BYTES = 4
LOW_BYTES = 2


class PhasePrecision(Strategy):
    """Which precision is computed in now, and how often that changed. Always there; saved where phases differ.

    Costs: a switch itself costs nothing, a compiled model is compiled once for each precision. Saves: see `savings`.
    """

    name = "phase_precision"

    def __init__(self, by_phase: Mapping[str, Precision]) -> None:
        self.by_phase = MappingProxyType(dict(by_phase))
        self.has_state = len(set(self.by_phase.values())) > 1
        self.current = self.by_phase[VALIDATION_PHASE]
        self.switches = 0
        self._is_in_a_phase = False

    @classmethod
    def of(cls, config: RunConfig, device: torch.device) -> PhasePrecision:
        """As configured, on `device`. Raises ConfigError for bf16 on a card without it."""
        by_phase = {}
        for phase in PHASES:
            own = getattr(config.memory, f"precision_{phase}")
            key = "memory.precision" if own is None else f"memory.precision_{phase}"
            requested = own or config.memory.precision
            by_phase[phase] = resolve_precision(requested, device, key=key, weights=config.memory.weights)
        return cls(by_phase)

    @property
    def distinct(self) -> frozenset[Precision]:
        """Every precision that some phase has."""
        return frozenset(self.by_phase.values())

    def enter_phase(self, phase: str, planned_steps: int | None) -> None:
        """Compute as `phase` does from here on."""
        before, self.current = self.current, self.by_phase[phase]
        self.switches += self._is_in_a_phase and before != self.current
        self._is_in_a_phase = True

    @contextmanager
    def of_validation(self) -> Iterator[None]:
        """Compute as in a full phase for a while; no switch of the run's."""
        before, self.current = self.current, self.by_phase[VALIDATION_PHASE]
        try:
            yield
        finally:
            self.current = before

    def state(self) -> Part:
        """The count of switches, and what was computed in last: a resume into the same phase is none."""
        return Part(values={"switches": self.switches, "current": self.current.name})

    def load(self, part: Part) -> None:
        """Restore both. Raises CheckpointError."""
        check_names("precision counters", {"switches": 0, "current": ""}, part.values)
        switches = part.values["switches"]
        if not isinstance(switches, int) or isinstance(switches, bool) or switches < 0:
            raise CheckpointError(f"counter switches is {switches!r}")
        self.switches = switches
        names = {precision.name: precision for precision in self.distinct}
        self._is_in_a_phase = part.values["current"] in names  # else a later run file names other precisions
        self.current = names.get(part.values["current"], self.current)

    def describe(self, config: RunConfig) -> dict[str, str]:
        """By phase: the precision (that `auto` chose at launch, or the configuration), and its predicted saving."""
        words = {}
        for phase, precision in self.by_phase.items():
            saved = saved_bytes(config, precision, phase)
            against = f", {format_bytes(abs(saved))} {'less' if saved > 0 else 'more'} than fp32 (predicted)"
            words[phase] = f"{precision.name}{against if saved else ''}"
        return words


def saved_bytes(config: RunConfig, precision: Precision, phase: str) -> int:
    """Predicted bytes that `precision` saves against fp32 in `phase`: smaller activations less the weights' copies.

    A predicted phase keeps neither.
    """
    if precision.autocast_dtype is None or phase == "predict":
        return 0
    copies = config.model.n_allocated_params() * LOW_BYTES if config.memory.weights == "fp32" else 0
    tokens = config.train.micro_batch_size * config.train_seq_len
    memory = config.memory
    mode, every = memory.activation_checkpointing, memory.activation_checkpointing_every
    fp32, low = (config.model.saved_bytes_per_token(width, mode, every) for width in (FP32_BYTES, LOW_BYTES))
    return tokens * (fp32 - low) - copies


class PhaseScaler(torch.amp.GradScaler):
    """A loss scaler that lets everything through, and keeps its scale, while `is_needed` says no."""

    def __init__(self, device: str, is_needed: Callable[[], bool], **options: Any) -> None:
        super().__init__(device, **options)
        self.is_needed = is_needed

    def scale(self, outputs: Any) -> Any:
        """`outputs` times the scale."""
        return super().scale(outputs) if self.is_needed() else outputs

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the optimizer's gradients by the scale."""
        if self.is_needed():
            super().unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """The optimizer's step, left out where a scaled gradient is infinite."""
        if self.is_needed():
            return super().step(optimizer, *args, **kwargs)
        return optimizer.step(*args, **kwargs)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Adapt the scale to what the last step met."""
        if self.is_needed():
            super().update(new_scale)


def grad_scaler(precisions: PhasePrecision, device: torch.device) -> torch.amp.GradScaler:
    """A loss scaler for the phases in fp16; where there is none, one that is switched off for good."""
    if not any(precision.needs_scaler for precision in precisions.distinct):
        return torch.amp.GradScaler(device.type, enabled=False)
    return PhaseScaler(device.type, lambda: precisions.current.needs_scaler)
