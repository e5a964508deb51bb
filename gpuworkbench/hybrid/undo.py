"""The state before a jump, kept until the jump is judged: weights and optimizer, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpuworkbench.errors import CheckpointError, DoesNotFitError
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.events.trouble import Trouble
from gpuworkbench.hybrid.body import Body
from gpuworkbench.memory.disk_copies import DiskCopies
from gpuworkbench.parts import Part

NOT_UNDOABLE = "there is no room for what a jump would be undone from"


class JumpUndo:
    """Copies of every tensor that holds a trainable weight or its optimizer state; nothing between two jumps.

    They lie where predictor state does, or on `disk`. As long as somebody holds them they are not written to: a
    checkpoint may still, when the next are made. Pinned memory is kept for the next ones.
    """

    version = 1

    def __init__(self, body: Body, optimizer: torch.optim.Optimizer, disk: DiskCopies | None = None) -> None:
        self.body = body
        self.optimizer = optimizer
        self.disk = disk
        self.step: int | None = None  # the true step that the copies are of; None: there are none
        self._copies: dict[str, Tensor] = {}
        self._trouble = Trouble()

    @property
    def num_bytes(self) -> int:
        """Bytes of the copies now."""
        return sum(copy.nbytes for copy in self._copies.values())

    def is_made(self, step: int, emit: Callable[..., Any]) -> bool:
        """Whether there are copies of this step; made where there are none, and told where the disk is too full."""
        if self.step == step:
            return True
        try:
            self.save(step)
        except OSError as error:
            reason = error.strerror or str(error)
            if self._trouble.begins(reason):
                emit(
                    WarningEvent,
                    step=step,
                    code="jump_not_made",
                    message=f"no jump: what it would be undone from could not be written ({reason})",
                    hint="training goes on without; free disk space, or resume with --set hybrid.undo_storage=memory",
                )
            return False
        failures = self._trouble.ends()
        if failures:
            message = f"jumps are made again; {failures} could not be made for want of disk space"
            emit(WarningEvent, step=step, code="jump_not_made", message=message)
        return True

    def save(self, step: int) -> None:
        """Copy the state now. The optimizer's must be where it computes.

        Raises OSError where the disk has no room: there are no copies then, and a jump must not be made.
        """
        self.drop()
        self._copies = self._copied({**dict(self._weights()), **dict(self._optimizer())})
        self.step = step

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

    def _copied(self, live: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.disk is not None:
            return self.disk.copy(live)
        copies = self.body.like(live, again="undo")
        for name, tensor in live.items():
            copies[name].copy_(tensor, non_blocking=True)
        self._settle()
        return copies

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
        """Wait for copies to the host, which have come to pageable memory already."""
        if self.body.state_device.type == "cpu" and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def state(self) -> Part:
        """The copies, as long as there are any."""
        return Part(dict(self._copies), {"step": self.step}, is_lasting=True)

    def load(self, part: Part) -> None:
        """Restore the copies. Raises CheckpointError, DoesNotFitError where the disk has no room for them."""
        step = part.values["step"]
        if step is not None and (type(step) is not int or not part.tensors):
            raise CheckpointError(f"the copies to undo a jump are of step {step!r}")
        self.drop()
        try:
            self._copies = self._copied(part.tensors)
        except OSError as error:
            raise DoesNotFitError(
                f"the copies that undo a jump cannot be put on the disk: {error.strerror or error}",
                "free disk space and resume, or resume with --set hybrid.undo_storage=memory",
            ) from None
        self.step = step

    def reset(self) -> None:
        """As before the first jump."""
        self.drop()
