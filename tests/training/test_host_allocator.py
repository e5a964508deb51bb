"""The allocator setting is taken, and freed blocks come back without the kernel clearing every page again."""

import ctypes
import subprocess
import sys

import pytest

from gpuworkbench.training import host_allocator

PROGRAM = """
import resource, torch
from gpuworkbench.training.host_allocator import keep_freed_memory
assert not {keep} or keep_freed_memory()

def work():
    blocks = [torch.ones(32 << 20, dtype=torch.uint8) for _ in range(3)]

for _ in range(20):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    program = PROGRAM.format(keep=keep)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return int(result.stdout)


def test_freed_memory_is_used_again():
    try:
        ctypes.CDLL("libc.so.6").gnu_get_libc_version()
    except (OSError, AttributeError):
        pytest.skip("not glibc")
    assert page_faults(keep=True) < page_faults(keep=False) / 4


def test_elsewhere_it_says_no(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(host_allocator.ctypes, "CDLL", missing)
    assert host_allocator.keep_freed_memory() is False


HOST_MEMORY = """
import resource, torch
from gpuworkbench.memory.host_arena import host_like
from gpuworkbench.training.host_allocator import keep_freed_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

assert keep_freed_memory()
before = resident_mib()
held = host_like(torch.empty(1 << 24, device="meta")).fill_(1)
assert held.shape == (1 << 24,) and held.dtype == torch.float32
during = resident_mib()
del held
print(during - before, resident_mib() - before)
"""


def test_large_blocks_of_host_memory_go_back_although_the_heap_never_shrinks() -> None:
    """64 MiB of it; the heap would keep them."""
    done = subprocess.run([sys.executable, "-c", HOST_MEMORY], capture_output=True, text=True, check=True)
    during, after = map(float, done.stdout.split())
    assert during == pytest.approx(64, abs=4)
    assert after < 4
