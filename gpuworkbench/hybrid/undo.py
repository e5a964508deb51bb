"""The state before a jump, kept until the jump is judged: weights and optimizer, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gpuworkbench.errors import CheckpointError
from gpuworkbench.hybrid.body import Body
from gpuworkbench.parts import Part


class JumpUndo:
    """Copies of every tensor that holds a trainable weight or its optimizer state; nothing between two jumps."""

    version = 1

    def __init__(self, body: Body, optimizer: torch.optim.Optimizer) -> None:
        self.body = body
        self.optimizer = optimizer
        self.step: int | None = None  # the true step that the copies are of; None: there are none
        self._copies: dict[str, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of the copies now."""
        return sum(copy.nbytes for copy in self._copies.values())

    def save(self, step: int) -> None:
        """Copy the state now. The optimizer's must be where it computes."""
        live = {**dict(self._weights()), **dict(self._optimizer())}
        if set(live) != set(self._copies):
            self._copies = {name: self.body.empty_like(tensor) for name, tensor in live.items()}
        for name, tensor in live.items():
            self._copies[name].copy_(tensor, non_blocking=True)
        self.step = step
        self._settle()

    def restore_weights(self) -> None:
        """The weights as they were; the optimizer has not moved since."""
        self._restore(self._weights())

    def restore(self) -> None:
        """Weights and optimizer as they were."""
        self._restore(self._weights())
        self._restore(self._optimizer())

    def drop(self) -> None:
        """Forget the copies: the jump is judged."""
        self._copies, self.step = {}, None

    def _restore(self, live: Iterator[tuple[str, Tensor]]) -> None:
        for name, tensor in live:
            tensor.copy_(self._copies[name])

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.body.parameters.items():
            for number, tensor in enumerate(self.body.weights.raw(parameter)):
                yield f"weights/{number}/{name}", tensor

    def _optimizer(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.body.parameters.items():
            weights = {tensor.data_ptr() for tensor in self.body.weights.raw(parameter)}
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor) and value.data_ptr() not in weights:  # residuals and masters are weights
                    yield f"optimizer/{key}/{name}", value

    def _settle(self) -> None:
        """Wait for copies to the host: what they are taken from changes next."""
        if self.body.state_device.type == "cpu" and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def state(self) -> Part:
        """The copies, as long as there are any."""
        return Part(dict(self._copies), {"step": self.step})

    def load(self, part: Part) -> None:
        """Restore the copies. Raises CheckpointError."""
        step = part.values["step"]
        if step is not None and (type(step) is not int or not part.tensors):
            raise CheckpointError(f"the copies to undo a jump are of step {step!r}")
        self._copies = {}
        for name, saved in part.tensors.items():
            self._copies[name] = self.body.empty_like(saved).copy_(saved)
        self.step = step

    def reset(self) -> None:
        """As before the first jump."""
        self.drop()
