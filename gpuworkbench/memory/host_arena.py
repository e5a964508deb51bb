"""Memory that is not the device's: pinned host memory beside a card; for a computation on the CPU, numpy's own.

A CPU run's arenas stand for the host of a machine with a card, so they are no tensors of torch's allocator and are not
counted among a run's tensor bytes. Pinning registers what is allocated already: torch's own pinned allocator rounds
requests up to powers of two.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpuworkbench.units import MIB

ALIGNMENT = 512
CHUNK_BYTES = 64 * MIB
MAPPED_BYTES = MIB  # from this size on a block is the kernel's own


class HostArena:
    """`num_bytes` of host memory, allocated once and handed out in slices. It is freed with the last of them."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        """Pinned where `device` is a card and the driver allows it; see `is_pinned`. Raises MemoryError."""
        self.num_bytes = num_bytes
        self.memory = _mapped(num_bytes)  # pages of its own: two arenas that share one could not both be pinned
        self.is_pinned = device.type == "cuda" and _pin(self.memory)
        self._used = 0

    def take(self, num_bytes: int) -> Tensor | None:
        """The next `num_bytes` as a (num_bytes,) uint8 tensor; None where there are not that many left."""
        if self._used + num_bytes > self.num_bytes:
            return None
        start, self._used = self._used, aligned(self._used + num_bytes)
        return self.memory[start : start + num_bytes]

    def clear(self) -> None:
        """All slices are free again."""
        self._used = 0


class HostPool:
    """Arenas of CHUNK_BYTES, or of one slice that is larger; all slices become free when the last holder is gone."""

    def __init__(self, device: torch.device, on_unpinned: Callable[[], None] = lambda: None) -> None:
        """`on_unpinned` hears of the first arena that the driver refuses to pin."""
        self.device = device
        self.on_unpinned = on_unpinned
        self._is_refused = False
        self._chunks: list[HostArena] = []
        self._holders = 0

    @property
    def num_bytes(self) -> int:
        """Host memory taken so far."""
        return sum(chunk.num_bytes for chunk in self._chunks)

    @property
    def is_pinned(self) -> bool:
        """Whether all of it is page-locked; False as long as there is none."""
        return bool(self._chunks) and all(chunk.is_pinned for chunk in self._chunks)

    def hold(self) -> None:
        """Slices taken from now on belong to one more holder."""
        self._holders += 1

    def release(self) -> None:
        """A holder needs its slices no more."""
        self._holders -= 1
        if self._holders == 0:
            for chunk in self._chunks:
                chunk.clear()

    def take(self, num_bytes: int) -> Tensor:
        """A (num_bytes,) uint8 slice. Raises MemoryError."""
        for chunk in self._chunks:
            found = chunk.take(num_bytes)
            if found is not None:
                return found
        chunk = HostArena(max(num_bytes, CHUNK_BYTES), self.device)
        if self.device.type == "cuda" and not chunk.is_pinned and not self._is_refused:
            self._is_refused = True
            self.on_unpinned()
        self._chunks.append(chunk)
        found = chunk.take(num_bytes)
        assert found is not None
        return found


class HostMemory:
    """Sets of tensors beside a card, each in an arena of its own: as many bytes as they have, ALIGNMENT left aside, and
    freed with the set's last tensor.

    The first time the driver refuses to pin a set, `on_unpinned` hears of it, and from then on sets are pageable.
    """

    def __init__(self, device: torch.device, on_unpinned: Callable[[], None] = lambda: None) -> None:
        self.device = device
        self.on_unpinned = on_unpinned
        self._kept: dict[str, HostArena] = {}

    def like(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, *, again: str = ""
    ) -> dict[str, Tensor]:
        """Uninitialised tensors of these shapes. Raises MemoryError.

        Pinning takes seconds for gigabytes: under a name, `again`, pinned memory is kept for the next set of that name,
        which has it if nobody holds a tensor of this one any more.
        """
        kinds = {name: (tensor.shape, dtype or tensor.dtype) for name, tensor in tensors.items()}
        sizes = {name: shape.numel() * kind.itemsize for name, (shape, kind) in kinds.items()}
        arena = self._arena(sum(aligned(size) for size in sizes.values()), again)
        made = {}
        for name, (shape, kind) in kinds.items():
            memory = arena.take(sizes[name])
            assert memory is not None
            made[name] = memory.view(kind).view(shape)
        return made

    def _arena(self, num_bytes: int, again: str) -> HostArena:
        kept = self._kept.pop(again, None)
        if kept is not None and kept.num_bytes == num_bytes and is_last_holder(kept.memory):
            kept.clear()
            arena = kept
        else:
            kept = None  # freed before there is another, unless somebody holds a tensor in it
            arena = HostArena(num_bytes, self.device)
            if self.device.type == "cuda" and not arena.is_pinned:
                self.device = torch.device("cpu")
                self.on_unpinned()
        if again and arena.is_pinned:
            self._kept[again] = arena
        return arena


def aligned(num_bytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def bytes_of(tensor: Tensor) -> Tensor:
    """The whole storage of `tensor` as (num_bytes,) uint8; no copy."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def is_last_holder(tensor: Tensor) -> bool:
    """Whether nobody but `tensor` has its storage."""
    return _holders(tensor) <= _holders(torch.empty(1))  # how torch counts differs from version to version


def _holders(tensor: Tensor) -> int:
    functions: Any = torch._C
    return int(functions._storage_Use_Count(tensor.untyped_storage()._cdata))


def host_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of this shape in memory that is not torch's."""
    dtype = dtype or tensor.dtype
    memory = _allocated(tensor.numel() * dtype.itemsize)
    return memory[: tensor.numel() * dtype.itemsize].view(dtype).view(tensor.shape)


def poison(tensor: Tensor) -> None:
    """Fill a uint8 tensor so that every floating point number in it is NaN and every signed integer -1."""
    tensor.fill_(0xFF)


def _allocated(num_bytes: int) -> Tensor:
    """Bytes on the host. Large blocks are the kernel's own: the C library's heap, which a run on a CPU never shrinks,
    would keep them, and holes where they lay. Raises MemoryError.
    """
    if num_bytes < MAPPED_BYTES:
        return torch.from_numpy(np.empty(max(num_bytes, 1), np.uint8))
    return _mapped(num_bytes)


def _mapped(num_bytes: int) -> Tensor:
    """Pages of their own, which go back to the kernel when the last holder is gone. Raises MemoryError."""
    try:
        pages = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.from_numpy(np.frombuffer(pages, np.uint8))
    except OSError as error:
        raise MemoryError(f"no {num_bytes:,} bytes of host memory: {error.strerror or error}") from None


def _pin(memory: Tensor) -> bool:
    """Register host memory with the driver until it is freed; False where the driver refuses (WSL2, a low limit)."""
    runtime: Any = torch.cuda.cudart()
    pointer = memory.data_ptr()
    try:
        refused = int(runtime.cudaHostRegister(pointer, memory.numel(), 0)) != 0
    except RuntimeError:
        refused = True
    if refused:
        _forget_error()
        return False
    weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, pointer)
    return True


def _forget_error() -> None:
    """CUDA keeps the last error for whoever asks next, which would be some innocent kernel's launch check."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
