"""Which exceptions say that memory is full, and what their text tells: torch's allocators, the host's, cuBLAS."""

from __future__ import annotations

import os
import re
import resource
import traceback
from enum import StrEnum
from typing import NamedTuple

import psutil
import torch

from gpuworkbench.units import GIB, KIB, MIB

# CUDA calls beside torch's allocator fail with their own words: a library's handle, a kernel that is loaded late,
# pinned host memory.
_MARKS = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)
_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"
_UNITS = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
OTHERS_MATTER_BYTES = 256 * MIB  # a desktop's own share of a card is not news


class Why(StrEnum):
    """Why memory was full."""

    TOO_BIG = "too_big"  # the run needs more than there is
    FRAGMENTATION = "fragmentation"  # free memory would do, but lies in pieces
    OTHER_PROCESS = "other_process"  # it would fit if nobody else used the device


class Shortage(NamedTuple):
    """What was asked for and what there was, in bytes; unknown is None."""

    requested_bytes: int | None = None
    free_bytes: int | None = None  # that anybody could still have
    in_use_bytes: int | None = None  # by tensors of this process
    unallocated_bytes: int | None = None  # held by this process's allocator, not in use
    others_bytes: int | None = None  # by other processes
    limit_bytes: int | None = None  # what this process may have at most

    @property
    def needed_bytes(self) -> int | None:
        """What the run needed at least at this moment."""
        if self.requested_bytes is None or self.in_use_bytes is None:
            return None
        return self.requested_bytes + self.in_use_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the card's or the host's memory was asked for more than it has."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _MARKS)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, which may be empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def let_go(error: BaseException) -> None:
    """Drop what the failed call's frames still hold, activations above all, so that it can be used again."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__


def shortage_of(error: BaseException, device: torch.device, limit_bytes: int | None = None) -> Shortage:
    """What `error` and the allocator say; `limit_bytes`: what the run may have on its card."""
    if device.type == "cuda":
        return card_shortage(str(error), limit_bytes)
    return host_shortage(str(error))


def card_shortage(text: str, limit_bytes: int | None = None) -> Shortage:
    """From the text of torch's OutOfMemoryError, which was written the moment it happened."""
    requested, total = _bytes(r"Tried to allocate " + _SIZE, text), _bytes(r"total capacity of " + _SIZE, text)
    free = _bytes(r"of which " + _SIZE + " is free", text)
    own = _bytes(r"this process has " + _SIZE + " memory in use", text)
    allowed = _bytes(_SIZE + r" allowed", text)
    others = sum(_all_bytes(r"Process \d+ has " + _SIZE + " memory in use", text)) or None
    if None not in (total, free, own):  # in a container other processes are not named, but their memory is gone
        others = max(others or 0, total - free - own)  # type: ignore[operator]
    return Shortage(
        requested_bytes=requested,
        free_bytes=free,
        in_use_bytes=_bytes(r"Of the allocated memory " + _SIZE, text),
        unallocated_bytes=_bytes(_SIZE + r" is reserved by PyTorch but unallocated", text),
        others_bytes=others,
        limit_bytes=min((size for size in (limit_bytes, allowed, total) if size is not None), default=None),
    )


def host_shortage(text: str) -> Shortage:
    """From the text of the CPU allocator's error, and the host as it is."""
    found = re.search(r"tried to allocate (\d+) bytes", text)
    memory, used = psutil.virtual_memory(), psutil.Process().memory_info()
    cap = resource.getrlimit(resource.RLIMIT_AS)[0]
    if cap != resource.RLIM_INFINITY and cap < memory.total:
        return Shortage(int(found[1]) if found else None, max(cap - used.vms, 0), used.vms, None, None, cap)
    return Shortage(
        requested_bytes=int(found[1]) if found else None,
        free_bytes=memory.available,
        in_use_bytes=used.rss,
        others_bytes=max(memory.total - memory.available - used.rss, 0),
        limit_bytes=memory.total,
    )


def why(shortage: Shortage) -> Why:
    """See `Why`; too big where nothing says otherwise."""
    requested = shortage.requested_bytes
    if requested is None:
        return Why.TOO_BIG
    if (shortage.unallocated_bytes or 0) >= requested:
        return Why.FRAGMENTATION
    others, free = shortage.others_bytes or 0, shortage.free_bytes or 0
    held = (shortage.in_use_bytes or 0) + (shortage.unallocated_bytes or 0)
    is_allowed = shortage.limit_bytes is None or held + requested <= shortage.limit_bytes
    if others > OTHERS_MATTER_BYTES and free < requested <= free + others and is_allowed:
        return Why.OTHER_PROCESS
    return Why.TOO_BIG


def uses_expandable_segments() -> bool:
    """Whether the allocator was told to grow its segments, torch's own remedy for fragmentation."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    return any("expandable_segments:true" in os.environ.get(name, "").lower().replace(" ", "") for name in names)


def _bytes(pattern: str, text: str) -> int | None:
    return next(iter(_all_bytes(pattern, text)), None)


def _all_bytes(pattern: str, text: str) -> list[int]:
    return [round(float(number) * _UNITS[unit]) for number, unit in re.findall(pattern, text)]
