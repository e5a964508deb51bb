"""What an out-of-memory text says, against the texts that torch writes (c10/cuda/CUDACachingAllocator.cpp)."""

from __future__ import annotations

import pytest
import torch

from gpuworkbench.training.memory_errors import Shortage, Why, card_shortage, host_shortage, is_out_of_memory, why
from gpuworkbench.units import GIB, MIB

HEAD = (
    "CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 15.57 GiB of which {free} is free. "
)
OTHER = "Process 9 has 6.00 GiB memory in use. "
TAIL = "Of the allocated memory {used} is allocated by PyTorch, and {held} is reserved by PyTorch but unallocated. If"


def text(asked: str, free: str, used: str, held: str, between: str = "") -> str:
    return HEAD.format(asked=asked, free=free) + between + TAIL.format(used=used, held=held)


def test_every_number_of_the_text_is_read() -> None:
    between = "Process 77 has 2.00 GiB memory in use. "
    between += "Including non-PyTorch memory, this process has 12.50 GiB memory in use. "
    shortage = card_shortage(text("512.00 MiB", "100.00 MiB", "11.00 GiB", "1.00 GiB", between + "14.00 GiB allowed; "))
    assert shortage.requested_bytes == 512 * MIB
    assert shortage.free_bytes == 100 * MIB
    assert shortage.in_use_bytes == 11 * GIB
    assert shortage.unallocated_bytes == GIB
    assert shortage.others_bytes == pytest.approx((15.57 - 12.5) * GIB - 100 * MIB), "the driver's share too"
    assert shortage.limit_bytes == 14 * GIB
    assert shortage.needed_bytes == 11 * GIB + 512 * MIB


def test_memory_of_processes_that_are_not_named_counts_too() -> None:
    own = "Including non-PyTorch memory, this process has 10.57 GiB memory in use. "
    shortage = card_shortage(text("1.00 GiB", "500.00 MiB", "10.00 GiB", "70.00 MiB", own))
    assert shortage.others_bytes == pytest.approx(5 * GIB - 500 * MIB, rel=1e-3)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (text("2.00 GiB", "300.00 MiB", "14.00 GiB", "200.00 MiB"), Why.TOO_BIG),
        (text("512.00 MiB", "300.00 MiB", "11.00 GiB", "3.00 GiB"), Why.FRAGMENTATION),
        (text("512.00 MiB", "300.00 MiB", "8.00 GiB", "200.00 MiB", OTHER), Why.OTHER_PROCESS),
        (text("9.00 GiB", "300.00 MiB", "8.00 GiB", "200.00 MiB", OTHER), Why.TOO_BIG),
        # its own cap stopped it, whoever else is there
        (text("512.00 MiB", "1.00 GiB", "7.50 GiB", "200.00 MiB", OTHER + "7.50 GiB allowed; "), Why.TOO_BIG),
        ("CUDA error: out of memory", Why.TOO_BIG),
        ("", Why.TOO_BIG),
    ],
)
def test_the_cause(message: str, expected: Why) -> None:
    assert why(card_shortage(message)) is expected


def test_the_card_s_own_limit_holds_where_the_text_names_none() -> None:
    assert card_shortage("CUDA out of memory.", 8 * GIB).limit_bytes == 8 * GIB
    assert card_shortage(text("1.00 GiB", "1.00 MiB", "1.00 GiB", "1.00 MiB"), 80 * GIB).limit_bytes == pytest.approx(
        15.57 * GIB, rel=1e-6
    )


def test_a_real_failure_of_the_host_s_allocator_is_understood() -> None:
    """Half an exabyte: no overcommit grants it."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**59, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    shortage = host_shortage(str(caught.value))
    assert shortage.requested_bytes == 2**59
    assert shortage.limit_bytes is not None
    assert why(shortage) is Why.TOO_BIG


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_which_errors_say_that_memory_is_full(error: Exception, is_full: bool) -> None:
    assert is_out_of_memory(error) is is_full


def test_unknown_sizes_have_no_need() -> None:
    assert Shortage(requested_bytes=5).needed_bytes is None
