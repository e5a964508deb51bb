"""What backward needs of each block waits in host memory meanwhile (the idea of ZeRO-Offload's activations and of
torch's `save_on_cpu`), block by block: the copy of one block goes out while the next is computed, and in backward the
block before is on its way back while this one is worked on.

Saves all that blocks keep but two of them at a time. Costs every kept byte twice over the bus in each micro-batch; what
of it is hidden depends on the card and is told step by step. With activation_checkpointing it moves what that keeps
for autograd: inputs of blocks (what selective caches stays). Not with a compiled model, which is one block.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.events.schema import Offload
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.memory.host_arena import HostPool, bytes_of, is_last_holder, poison
from gpuworkbench.memory.strategy import Strategy, StrategyContext
from gpuworkbench.memory.transfer import Mover, Transfer
from gpuworkbench.models.base import CallBlock, LanguageModel, plain_block_call

MIN_BYTES = 4096  # less is not worth a copy: statistics of norms, scalars


class Saved(NamedTuple):
    """Stands in autograd's graph for a tensor whose storage is the `number`th of a block's."""

    block: BlockStore
    number: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Totals(NamedTuple):
    """One step's transfers in one direction."""

    num_bytes: int
    transfers: tuple[Transfer, ...]


class BlockStore:
    """What one block keeps in one forward pass: storages, their bytes on the host, and the way back."""

    def __init__(self, owner: ActivationOffload, before: BlockStore | None, x: Tensor, *, stays: bool) -> None:
        """`stays`: the last block, which backward begins with; it only calls the one before back."""
        self.owner = owner
        self.stays = stays
        self.before = before  # the block that backward comes to next
        self._index: dict[int, int] = {}  # storage address -> number, while the forward pass of the block lasts
        self._sources: list[Tensor] = []  # each storage as bytes
        self._hosts: list[Tensor] = []
        self._uses: list[int] = []  # tensors of the graph that lie in the storage
        self._returned: dict[int, Tensor] = {}
        self._out: Transfer | None = None
        self._back: Transfer | None = None
        self._kept = {x.untyped_storage().data_ptr()}
        owner.pool.hold()

    def __del__(self) -> None:
        try:
            for transfer in (self._out, self._back):
                if transfer is not None:
                    transfer.wait()  # where backward never came: its host memory is another's next
        finally:
            self.owner.pool.release()

    def pack(self, tensor: Tensor) -> Saved | Tensor:
        """Autograd wants to keep `tensor`."""
        if self.stays or not self.owner.moves(tensor):
            return tensor
        address = tensor.untyped_storage().data_ptr()
        if address not in self._index:
            self._index[address] = len(self._sources)
            self._sources.append(bytes_of(tensor))
            self._uses.append(0)
        index = self._index[address]
        self._uses[index] += 1
        return Saved(self, index, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def unpack(self, saved: Saved | Tensor) -> Tensor:
        """Backward wants it back."""
        if not isinstance(saved, Tensor):
            return saved.block.get(saved)
        if self.stays and self.before is not None:
            self.before.begin_to_return()
        return saved

    def send(self, y: Tensor) -> None:
        """The block is done and gave `y`: its storages begin to leave."""
        if not self._sources:
            return
        self._kept.add(y.untyped_storage().data_ptr())
        self._hosts = [self.owner.pool.take(source.numel()) for source in self._sources]
        self._out = self.owner.start("offload", list(zip(self._hosts, self._sources, strict=True)))
        self._index.clear()

    def free(self) -> None:
        """The next block is done too: the device's memory goes, wherever nobody else has it."""
        if self._out is None or not self._sources:
            return
        self._out.wait()
        for source in self._sources:
            if self.owner.device.type == "cpu" and source.data_ptr() not in self._kept and is_last_holder(source):
                poison(source)
        self._sources.clear()

    def begin_to_return(self) -> None:
        """Backward will need the block soon."""
        if self._back is not None or not self._hosts:
            return
        self.free()
        assert self._out is not None
        self._out.synchronize()
        self._returned = {index: self._target(host) for index, host in enumerate(self._hosts)}
        self._back = self.owner.start("restore", [(self._returned[i], host) for i, host in enumerate(self._hosts)])

    def get(self, saved: Saved) -> Tensor:
        """One tensor, on the device; the block before begins to return."""
        self.begin_to_return()
        assert self._back is not None
        self._back.wait()
        if self.before is not None:
            self.before.begin_to_return()
        index = saved.number
        if index not in self._returned:  # a second backward pass through a kept graph
            self._returned[index] = self._target(self._hosts[index]).copy_(self._hosts[index])
        storage = self._returned[index]
        self._uses[index] -= 1
        if self._uses[index] <= 0:
            del self._returned[index]  # the graph's node holds it as long as it works on it
        typed = torch.empty(0, dtype=saved.dtype, device=storage.device)
        return typed.set_(storage.untyped_storage(), saved.offset, saved.size, saved.stride)

    def _target(self, host: Tensor) -> Tensor:
        target = torch.empty(host.numel(), dtype=torch.uint8, device=self.owner.device)
        if self.owner.device.type == "cpu":
            poison(target)  # or the allocator might give the old values back
        return target


class ActivationOffload(Strategy):
    """The strategy behind memory.activation_offload; callable as a model's `call_block`."""

    name = "activation_offload"

    def __init__(self) -> None:
        self.inner: CallBlock = plain_block_call
        self.phase = ""
        self._last: BlockStore | None = None  # of the forward pass that is under way
        self._moved: dict[str, list[tuple[int, Transfer]]] = {"offload": [], "restore": []}
        self._untold: deque[tuple[int, str, str, Totals]] = deque()  # step, phase, direction, what was moved

    @classmethod
    def from_config(cls, config: RunConfig) -> ActivationOffload | None:
        """As memory.activation_offload says."""
        return cls() if config.memory.activation_offload else None

    def apply(self, model: LanguageModel) -> None:
        """Let `model` run its blocks this way."""
        self.inner, model.call_block = model.call_block, self

    def attach(self, context: StrategyContext) -> None:
        """Learn what lives on the device for good: weights, buffers and autocast's copies of matrices stay."""
        self.context, self.device = context, context.device
        self.pool = HostPool(context.device, self._warn_unpinned)
        self._mover = Mover(context.device)
        self._n_blocks = len(context.model.blocks)
        named = [*context.model.parameters(), *context.model.buffers()]
        self._resident = {tensor.untyped_storage().data_ptr() for tensor in named}
        self._transposed_shapes = {tuple(reversed(p.shape)) for p in context.model.parameters() if p.dim() == 2}

    def enter_phase(self, phase: str, planned_steps: int | None) -> None:
        """Transfers are told with their phase."""
        self.phase = phase

    def __call__(self, layer: int, block: nn.Module, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if not torch.is_grad_enabled():
            return self.inner(layer, block, x)
        if layer == 0:
            self._last = None  # what its backward still needs, the graph holds; else the next has its host memory
        before = self._last
        store = BlockStore(self, before, x, stays=layer == self._n_blocks - 1)
        with torch.autograd.graph.saved_tensors_hooks(store.pack, store.unpack):
            y = self.inner(layer, block, x)
        store.send(y)
        if before is not None:
            before.free()
        self._last = store
        return y

    def before_update(self) -> None:
        """No forward pass is under way any more."""
        self._last = None

    def moves(self, tensor: Tensor) -> bool:
        """Whether a tensor that autograd keeps goes to the host."""
        if tensor.device.type != self.device.type or tensor.numel() * tensor.element_size() < MIN_BYTES:
            return False
        if tensor.untyped_storage().data_ptr() in self._resident:
            return False
        is_transposed = tensor.dim() == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous()
        return not (is_transposed and tuple(tensor.shape) in self._transposed_shapes)  # a product keeps its weight so

    def start(self, op: str, copies: list[tuple[Tensor, Tensor]]) -> Transfer:
        """Begin a block's copies."""
        transfer = self._mover.start(copies)
        self._moved[op].append((sum(source.numel() for _, source in copies), transfer))
        return transfer

    def after_step(self) -> None:
        """One event for each direction, as soon as the times are known."""
        for op, moved in self._moved.items():
            if moved:
                totals = Totals(sum(size for size, _ in moved), tuple(transfer for _, transfer in moved))
                self._untold.append((self.context.step() + 1, self.phase, op, totals))
                moved.clear()
        while self._untold and self._tell(*self._untold[0]):
            self._untold.popleft()

    def _tell(self, step: int, phase: str, op: str, totals: Totals) -> bool:
        timings = [transfer.timing() for transfer in totals.transfers]
        known = [timing for timing in timings if timing is not None]
        if len(known) < len(timings):
            return False
        self.context.emit(
            Offload,
            step=step,
            op=op,
            target="activations",
            phase=phase,
            num_bytes=totals.num_bytes,
            freed_bytes=totals.num_bytes if op == "offload" else 0,
            duration_s=sum(timing.duration_s for timing in known),
            overlapped_s=sum(timing.overlapped_s for timing in known),
        )
        return True

    def _warn_unpinned(self) -> None:
        self.context.emit(
            WarningEvent,
            step=self.context.step(),
            code="activation_offload",
            message="the driver refuses to pin the host memory that activations wait in",
            hint="they move through pageable memory: slower, and the same values",
        )
