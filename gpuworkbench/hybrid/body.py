"""The trainable weights as predictors see them: fp32 values where predictor state lives, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gpuworkbench.memory.host_arena import HostMemory
from gpuworkbench.memory.weights import Weights

Correct = Callable[[str, Tensor], Tensor]  # a weight's name and delta to the corrected delta


class Body:
    """Trainable parameters by name, each once (a tied weight has one name), read and written through `weights`.

    With `host` predictor state lies there, `state_device` is the CPU and predictors compute on it: a weight comes over,
    its new value goes back, and the card never holds more than one tensor's fp32 value beside the model.
    """

    def __init__(
        self, model: nn.Module, weights: Weights, device: torch.device, host: HostMemory | None = None
    ) -> None:
        """`device`: where the model computes, and predictor state lies without `host`."""
        self.host = host
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = weights
        self.state_device = device if host is None else torch.device("cpu")
        self._moved: list[Tensor] = []
        self._correct: Correct | None = None

    @property
    def n_elements(self) -> int:
        """Trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def read(self, name: str) -> Tensor:
        """The value in fp32 on `state_device`; perhaps the weight itself, so do not write to it."""
        return self.weights.read(self.parameters[name]).to(self.state_device)

    def write(self, name: str, value: Tensor) -> None:
        """Make `value` (fp32, on `state_device`) the weight's value; the distance counts into `moved`."""
        parameter = self.parameters[name]
        self._moved.append(torch.linalg.vector_norm(value - self.read(name)))
        self.weights.write(parameter, value.to(parameter.device))

    def add(self, name: str, delta: Tensor) -> None:
        """Move the weight by `delta` (fp32, on `state_device`), or what that is corrected to."""
        self.write(name, self.read(name) + (delta if self._correct is None else self._correct(name, delta)))

    @contextmanager
    def corrected_by(self, correct: Correct | None) -> Iterator[None]:
        """Within, `add` moves by `correct(name, delta)` in the place of `delta`."""
        self._correct = correct
        try:
            yield
        finally:
            self._correct = None

    def like(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, *, again: str = ""
    ) -> dict[str, Tensor]:
        """Uninitialised tensors of these shapes where predictor state lies. `again`: see HostMemory.like."""
        if self.host is not None:
            return self.host.like(tensors, dtype, again=again)
        return {
            name: torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=self.state_device)
            for name, tensor in tensors.items()
        }

    def slot(self, *, again: str = "") -> dict[str, Tensor]:
        """An uninitialised fp32 tensor for each weight, where predictor state lies."""
        return self.like(self.parameters, torch.float32, again=again)

    def copies(self, *, again: str = "") -> dict[str, Tensor]:
        """The values now, as state of a predictor."""
        return {name: copy.copy_(self.read(name)) for name, copy in self.slot(again=again).items()}

    def moved(self) -> float:
        """Euclidean length of all writes since the last call (one sync)."""
        length = float(torch.linalg.vector_norm(torch.stack(self._moved))) if self._moved else 0.0
        self._moved = []
        return length
