"""Optimizer state leaves the device while progress is predicted, which needs none of it, and is back when it is needed.

Saves the state's bytes (8 per parameter with fp32 AdamW) in predicted stretches, whose peak is then weights and a
forward pass. Costs two copies of the state a stretch, hidden behind the jump's own work as far as that lasts.
On a CPU the same code moves the bytes to memory that is not torch's.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.events.schema import Offload
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.memory.host_arena import HostArena, aligned, bytes_of, poison
from gpuworkbench.memory.strategy import Strategy, StrategyContext
from gpuworkbench.memory.transfer import Mover, Transfer
from gpuworkbench.memory.weights import weights_of
from gpuworkbench.units import format_bytes

MIN_BYTES = 256  # less is not worth a copy of its own; torch's step counts are on the host anyhow
PREDICT = "predict"


class Place(Enum):
    """Where the state is."""

    HERE = "on the device"
    LEAVING = "on the device, being copied to the host"
    AWAY = "on the host"
    RETURNING = "on the host, being copied to the device"


class Lent(NamedTuple):
    """One tensor that was moved: how it lies in its storage, and where the storage's bytes are on the host."""

    tensor: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    host: Tensor  # (bytes of the storage,) uint8

    def on_host(self) -> Tensor:
        """The values, in host memory."""
        whole = self.host.view(self.tensor.dtype)
        return torch.as_strided(whole, self.size, self.stride, whole.storage_offset() + self.offset)


class Report(NamedTuple):
    """A transfer that is an event as soon as its times are known."""

    op: str
    step: int
    phase: str
    num_bytes: int
    freed_bytes: int
    transfer: Transfer


class PredictAwareOffload(Strategy):
    """The strategy behind memory.optimizer_offload = "predict_aware"."""

    name = "predict_aware_offload"

    def __init__(self, lookahead_steps: int, *, activation_bytes: int = 0) -> None:
        """`activation_bytes`: what a micro-batch keeps for backward, which is not there in a predicted phase."""
        self.lookahead_steps = lookahead_steps
        self.activation_bytes = activation_bytes
        self.place = Place.HERE
        self.phase = ""
        self._num_bytes = 0
        self._stretch = 0  # virtual steps from the state's leaving to the next true step; 0: not told yet
        self._arena: HostArena | None = None
        self._lent: dict[int, Lent] = {}  # by the tensor's id; it is held, so the id stays its own
        self._storages: dict[int, Tensor] = {}  # on the device, by the address on the host that they return from
        self._transfer: Transfer | None = None
        self._reports: deque[Report] = deque()

    @classmethod
    def from_config(cls, config: RunConfig) -> PredictAwareOffload | None:
        """As memory.optimizer_offload and memory.offload_lookahead_steps say."""
        memory, train = config.memory, config.train
        if memory.optimizer_offload != "predict_aware":
            return None
        full = memory.precision_full or memory.precision
        per_token = config.model.saved_bytes_per_token(
            4 if full == "fp32" else 2,
            memory.activation_checkpointing,
            memory.activation_checkpointing_every,
        )
        return cls(
            memory.offload_lookahead_steps,
            activation_bytes=train.micro_batch_size * config.train_seq_len * per_token,
        )

    def attach(self, context: StrategyContext) -> None:
        """Take hold of the optimizer."""
        self.context = context
        self._mover = Mover(context.device)

    # When it moves

    def enter_phase(self, phase: str, planned_steps: int | None) -> None:
        """Entering `predict` the state begins to leave; another phase needs it, so it begins to return."""
        entered, self.phase = phase != self.phase, phase
        if entered and phase == PREDICT:
            self._discard()
            if planned_steps is None or planned_steps > 1:
                self._begin_to_leave()
        elif phase != PREDICT and self.place is not Place.HERE:
            self._begin_to_return()

    def virtual_step(self, remaining_to_true_step: int) -> None:
        """The first call of a stretch sees the state off. With `offload_lookahead_steps` to go it begins to return, in
        a short stretch later, so that it is away at all; before the last virtual step it is there."""
        if self.place is Place.HERE and remaining_to_true_step > 1:
            self._begin_to_leave()
        if self.place is Place.LEAVING:
            self._stretch = remaining_to_true_step
            self._leave()
        elif self.place is Place.AWAY and remaining_to_true_step <= min(self.lookahead_steps, self._stretch - 1):
            self._begin_to_return()
        if self.place is Place.RETURNING and remaining_to_true_step <= 1:
            self._return()
        self._report()

    def before_step(self) -> None:
        """The state is on the device when this returns, wherever it was."""
        if self.place is not Place.HERE:
            self._return()
        self._report()

    def after_step(self) -> None:
        """Transfers whose times are known by now are told."""
        self._report()

    def before_load(self) -> None:
        """A checkpoint is loaded into the state: it must be where it belongs. A run that begins so reads none back."""
        self.before_step()

    # How it moves

    def resident(self, tensor: Tensor) -> Tensor:
        """A moved tensor's values, for a checkpoint taken meanwhile."""
        if self.place in (Place.HERE, Place.LEAVING):
            return tensor
        if self.place is Place.AWAY and self._transfer is not None:
            self._transfer.synchronize()
        lent = self._lent.get(id(tensor))
        return tensor if lent is None else lent.on_host()

    def _begin_to_leave(self) -> None:
        groups = self._state_by_storage()
        if not groups:  # before the first step there is none
            return
        sizes = [tensors[0].untyped_storage().nbytes() for tensors in groups]
        arena = self._arena_of(sum(aligned(size) for size in sizes))
        copies = []
        for tensors, size in zip(groups, sizes, strict=True):
            host = arena.take(size)
            assert host is not None
            copies.append((host, bytes_of(tensors[0])))
            self._lent |= {id(t): Lent(t, t.size(), t.stride(), int(t.storage_offset()), host) for t in tensors}
        self._num_bytes = sum(sizes)
        self._transfer = self._mover.start(copies)
        self.place, self._stretch = Place.LEAVING, 0

    def _leave(self) -> None:
        """Free the device's memory: each tensor becomes one poisoned element, seen again and again."""
        assert self._transfer is not None
        self._transfer.wait()
        for lent in self._lent.values():
            stub = torch.empty(lent.tensor.element_size(), dtype=torch.uint8, device=lent.tensor.device)
            poison(stub)
            stub = stub.view(lent.tensor.dtype)
            lent.tensor.set_(stub.untyped_storage(), 0, lent.size, (0,) * len(lent.size))
        self.place = Place.AWAY
        self._tell("offload", freed_bytes=self._num_bytes)

    def _begin_to_return(self) -> None:
        if self.place is Place.LEAVING:
            self._stay()
        if self.place is not Place.AWAY:
            return
        assert self._transfer is not None
        self._transfer.synchronize()
        device = self.context.device
        copies = []
        for lent in self._lent.values():
            if lent.host.data_ptr() not in self._storages:
                target = torch.empty(lent.host.numel(), dtype=torch.uint8, device=device)
                if device.type == "cpu":
                    poison(target)  # or the allocator might give the old values back
                self._storages[lent.host.data_ptr()] = target
                copies.append((target, lent.host))
        self._transfer = self._mover.start(copies)
        self.place = Place.RETURNING

    def _stay(self) -> None:
        """The state is needed before it has left."""
        assert self._transfer is not None
        self._transfer.wait()
        self._tell("offload", freed_bytes=0)
        self._lent, self._transfer, self.place = {}, None, Place.HERE

    def _return(self) -> None:
        self._begin_to_return()
        if self.place is Place.HERE:
            return
        assert self._transfer is not None
        self._transfer.wait()
        for lent in self._lent.values():
            storage = self._storages[lent.host.data_ptr()].untyped_storage()
            lent.tensor.set_(storage, lent.offset, lent.size, lent.stride)
        self._tell("restore", freed_bytes=0)
        self._lent, self._storages, self._transfer, self.place = {}, {}, None, Place.HERE

    def _state_by_storage(self) -> list[list[Tensor]]:
        """The optimizer's tensors on the device, those that share memory together; not what holds weights."""
        optimizer = self.context.optimizer
        weights = weights_of(optimizer)
        kept = {t.data_ptr() for p in optimizer.state for t in weights.raw(p)}
        groups: dict[int, list[Tensor]] = {}
        for state in optimizer.state.values():
            for value in state.values():
                if not isinstance(value, Tensor) or value.device.type != self.context.device.type:
                    continue
                storage = value.untyped_storage()
                if storage.nbytes() >= MIN_BYTES and value.data_ptr() not in kept:
                    groups.setdefault(storage.data_ptr(), []).append(value)
        return list(groups.values())

    def _arena_of(self, num_bytes: int) -> HostArena:
        """The one arena, emptied; made when the first state leaves."""
        if self._arena is None or self._arena.num_bytes < num_bytes:
            device = self.context.device
            self._arena = HostArena(num_bytes, device)
            if device.type == "cuda" and not self._arena.is_pinned:
                self._warn(
                    f"the driver refuses to pin {format_bytes(num_bytes)} of host memory",
                    "optimizer state moves through pageable memory: slower, and the same values",
                )
        self._arena.clear()
        return self._arena

    # What it tells

    def _tell(self, op: str, freed_bytes: int) -> None:
        assert self._transfer is not None
        step = self.context.step()
        self._reports.append(Report(op, step, self.phase, self._num_bytes, freed_bytes, self._transfer))

    def _report(self) -> None:
        while self._reports and (timing := self._reports[0].transfer.timing()) is not None:
            report = self._reports.popleft()
            self.context.emit(
                Offload,
                step=report.step,
                op=report.op,
                target="optimizer",
                phase=report.phase,
                num_bytes=report.num_bytes,
                freed_bytes=report.freed_bytes,
                duration_s=timing.duration_s,
                overlapped_s=timing.overlapped_s,
            )

    def _discard(self) -> None:
        """Probes keep nothing for backward: what a true micro-batch keeps (by the family's formula) is not there."""
        self.context.emit(
            Offload,
            step=self.context.step(),
            op="discard",
            target="activations",
            phase=PREDICT,
            num_bytes=0,
            freed_bytes=self.activation_bytes,
            duration_s=0.0,
            overlapped_s=0.0,
        )

    def _warn(self, message: str, hint: str) -> None:
        self.context.emit(WarningEvent, step=self.context.step(), code="optimizer_offload", message=message, hint=hint)
