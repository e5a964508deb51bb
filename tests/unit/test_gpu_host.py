"""Host probing against a tree of our own in place of /proc and /sys."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gpuworkbench.errors import UsageError
from gpuworkbench.gpu import host

GIB = 1024**3


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages of two cores of two threads each; 64 GiB, 48 of them available; no limits."""
    put(tmp_path, "proc/meminfo", f"MemTotal: {64 * 1024**2} kB\nMemFree: 1 kB\nMemAvailable: {48 * 1024**2} kB\n")
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Ryzen 7 9800X3D\nflags\t\t: fpu avx2 amx_bf16\n")
    put(tmp_path, "proc/self/cgroup", "0::/user.slice/run.scope\n")
    for cpu in range(8):
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", str(cpu // 4))
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/core_id", str(cpu % 4 // 2))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits(root: Path) -> None:
    found = host.probe_host(root)
    assert found == host.Host(
        memory_total_bytes=64 * GIB,
        memory_available_bytes=48 * GIB,
        cpu_name="Ryzen 7 9800X3D",
        physical_cores=4,
        is_wsl=False,
    )
    assert host.cpu_flags(root) == {"fpu", "avx2", "amx_bf16"}


@pytest.mark.parametrize(("allowed", "cores"), [({0, 1}, 1), ({0, 2}, 2), ({1, 5}, 2), ({0, 1, 2, 4}, 3)])
def test_affinity(root: Path, monkeypatch: pytest.MonkeyPatch, allowed: set[int], cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert host.physical_cores(root) == cores


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("900000 100000", 4),
        ("", 4),
        ("junk", 4),
        ("1 0", 4),
        ("-1 100000", 4),
    ],
)
def test_cpu_quota(root: Path, cpu_max: str, cores: int) -> None:
    put(root, "sys/fs/cgroup/user.slice/run.scope/cpu.max", cpu_max)
    assert host.physical_cores(root) == cores


def test_an_ancestor_may_set_the_limit(root: Path) -> None:
    put(root, "sys/fs/cgroup/user.slice/cpu.max", "100000 100000")
    put(root, "sys/fs/cgroup/user.slice/run.scope/memory.max", "max")
    put(root, "sys/fs/cgroup/user.slice/memory.max", str(8 * GIB))
    put(root, "sys/fs/cgroup/user.slice/memory.current", str(6 * GIB))
    put(root, "sys/fs/cgroup/user.slice/memory.stat", f"anon 1\ninactive_file {1 * GIB}\n")
    assert host.physical_cores(root) == 1
    assert host.memory(root) == (8 * GIB, 3 * GIB)


def test_in_a_container_the_root_is_the_limit(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/memory.max", str(4 * GIB))
    assert host.memory(root) == (4 * GIB, 4 * GIB)
    put(root, "proc/self/cgroup", "0::/../../elsewhere\n")
    assert host.memory(root) == (4 * GIB, 4 * GIB)


def test_unknown_is_none(tmp_path: Path) -> None:
    found = host.probe_host(tmp_path)
    assert (found.memory_total_bytes, found.memory_available_bytes, found.cpu_name) == (None, None, None)
    assert found.physical_cores == len(os.sched_getaffinity(0))
    assert host.cpu_flags(tmp_path) == frozenset()


def test_wsl_and_platforms(root: Path) -> None:
    put(root, "proc/sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2\n")
    assert host.is_wsl(root)
    host.require_supported_platform("linux")
    for platform, word in (("win32", "WSL2"), ("darwin", "Linux")):
        with pytest.raises(UsageError) as caught:
            host.require_supported_platform(platform)
        assert word in caught.value.line()


def test_disk_free_of_a_directory_to_be(tmp_path: Path) -> None:
    assert host.disk_free_bytes(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert host.disk_free_bytes(Path("a\0b")) is None
    (tmp_path / "file").touch()
    assert host.disk_free_bytes(tmp_path / "file" / "x") is None


def test_this_machine() -> None:
    found = host.probe_host()
    assert found.memory_total_bytes is not None
    assert found.memory_available_bytes is not None
    assert 0 < found.memory_available_bytes <= found.memory_total_bytes
    assert 1 <= found.physical_cores <= (os.cpu_count() or 1)
