"""Keeps freed host memory in the process, so that a training step on a CPU does not fetch it from the kernel again.

glibc gives every large block back when it is freed and asks for it again a moment later; the kernel then clears each
page. A step of GPT-2 small spends about an eighth (fp32) to a fifth (bf16) of its time on that: best rounds of "ours,
torch's own products", with and without "and allocator", in benchmarks/results/step_time_gpt2_small.json.
"""

from __future__ import annotations

import ctypes

# mallopt(3), glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it; for the rest of the process. Call before training on a CPU.

    Costs resident memory: it stays at its peak, about an eighth more than before; it does not grow with the steps.
    False where the C library is not glibc; nothing is changed then.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
