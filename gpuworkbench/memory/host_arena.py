"""Memory that is not the device's: pinned host memory beside a card; for a computation on the CPU, numpy's own.

A CPU run's arenas stand for the host of a machine with a card, so they are no tensors of torch's allocator and are not
counted among a run's tensor bytes. Pinning registers what is allocated already: torch's own pinned allocator rounds
requests up to powers of two.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpuworkbench.units import MIB

ALIGNMENT = 512
CHUNK_BYTES = 64 * MIB
MAPPED_BYTES = MIB  # from this size on a block is the kernel's own


class HostArena:
    """`num_bytes` of host memory, allocated once and handed out in slices."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        """Pinned where `device` is a card and the driver allows it; see `is_pinned`. Raises MemoryError."""
        self.num_bytes = num_bytes
        self.memory = _allocated(num_bytes)
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
        self.device = device
        self.on_unpinned = on_unpinned
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
        if self.device.type == "cuda" and not chunk.is_pinned:
            self.on_unpinned()
        self._chunks.append(chunk)
        found = chunk.take(num_bytes)
        assert found is not None
        return found


def aligned(num_bytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def bytes_of(tensor: Tensor) -> Tensor:
    """The whole storage of `tensor` as (num_bytes,) uint8; no copy."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def host_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of this shape in memory that is not torch's."""
    dtype = dtype or tensor.dtype
    memory = _allocated(tensor.numel() * dtype.itemsize)
    return memory[: tensor.numel() * dtype.itemsize].view(dtype).view(tensor.shape)


def poison(tensor: Tensor) -> None:
    """Fill a uint8 tensor so that every floating point number in it is NaN and every signed integer -1."""
    tensor.fill_(0xFF)


def _allocated(num_bytes: int) -> Tensor:
    """Bytes on the host. Large blocks are the kernel's own and go back to it when the last holder is gone: the C
    library's heap, which a run on a CPU never shrinks, would keep them, and holes where they lay. Raises MemoryError.
    """
    if num_bytes < MAPPED_BYTES:
        return torch.from_numpy(np.empty(max(num_bytes, 1), np.uint8))
    try:
        return torch.from_numpy(
            np.frombuffer(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        )
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
