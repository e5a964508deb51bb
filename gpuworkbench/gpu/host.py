"""The host: memory, CPU, disk and platform, as far as this process may use them (affinity and cgroup v2 limits)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from msgspec import Struct

from gpuworkbench.errors import UsageError
from gpuworkbench.units import KIB

_ROOT = Path("/")


class Host(Struct, frozen=True, kw_only=True):
    """One reading of the host."""

    memory_total_bytes: int | None
    memory_available_bytes: int | None
    cpu_name: str | None
    physical_cores: int
    is_wsl: bool


def probe_host(root: Path = _ROOT) -> Host:
    """The host now. `root` is where /proc and /sys are (tests put a tree of their own there)."""
    total, available = memory(root)
    return Host(
        memory_total_bytes=total,
        memory_available_bytes=available,
        cpu_name=cpu_name(root),
        physical_cores=physical_cores(root),
        is_wsl=is_wsl(root),
    )


def require_supported_platform(platform: str = sys.platform) -> None:
    """Raise UsageError on anything but Linux (WSL2 is Linux)."""
    if platform in ("win32", "cygwin"):
        raise UsageError("native Windows is not supported", "run gpuworkbench inside WSL2 (wsl --install)")
    if platform != "linux":
        raise UsageError(f"{platform} is not supported", "run gpuworkbench on Linux or WSL2")


def is_wsl(root: Path = _ROOT) -> bool:
    """Whether the kernel is WSL's."""
    return "microsoft" in (_read(root / "proc/sys/kernel/osrelease") or "").lower()


def memory(root: Path = _ROOT) -> tuple[int | None, int | None]:
    """(total, available) bytes: the machine's, or less where a cgroup limits this process; None where unknown."""
    total, available = _meminfo(root, "MemTotal"), _meminfo(root, "MemAvailable")
    for group in _cgroups(root):
        limit = _int(_read(group / "memory.max"))
        used = _int(_read(group / "memory.current"))
        if limit is None:
            continue
        total = _lower(total, limit)
        if used is not None:
            available = _lower(available, max(limit - used + _reclaimable(group), 0))
    return total, available if total is None else _lower(available, total)


def cpu_name(root: Path = _ROOT) -> str | None:
    """The CPU's model name."""
    return _cpuinfo(root, "model name")


def cpu_flags(root: Path = _ROOT) -> frozenset[str]:
    """Instruction set flags (avx2, avx512f, avx512_bf16, amx_bf16, ...); empty where unknown."""
    return frozenset((_cpuinfo(root, "flags") or "").split())


def physical_cores(root: Path = _ROOT) -> int:
    """Physical cores this process may use: within its affinity and its cgroup's cpu.max; at least 1."""
    allowed = sorted(os.sched_getaffinity(0))
    cores = {_core_of(cpu, root) for cpu in allowed}
    count = len(cores)
    for group in _cgroups(root):
        quota = _cpu_quota(_read(group / "cpu.max"))
        if quota is not None:
            count = min(count, max(int(quota), 1))
    return max(count, 1)


def disk_free_bytes(path: Path) -> int | None:
    """Free bytes of the file system that holds `path` (or would, once it is made); None where unknown."""
    for directory in (path, *path.parents):
        try:
            return shutil.disk_usage(directory).free
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return None
    return None


def _cgroups(root: Path) -> list[Path]:
    """This process's cgroup (v2) and its ancestors, each of which may set a limit."""
    base = root / "sys/fs/cgroup"
    name = next(
        (line[3:] for line in (_read(root / "proc/self/cgroup") or "").splitlines() if line.startswith("0::")), None
    )
    if name is None:
        return []
    relative = Path(name.lstrip("/"))
    if ".." in relative.parts:  # the process sits above this container's cgroup namespace
        return [base]
    return [base / parent for parent in (relative, *relative.parents)]


def _reclaimable(group: Path) -> int:
    """File cache that the kernel gives back before it kills."""
    for line in (_read(group / "memory.stat") or "").splitlines():
        if line.startswith("inactive_file "):
            return _int(line.split()[1]) or 0
    return 0


def _cpu_quota(text: str | None) -> float | None:
    """`200000 100000` -> 2.0 CPUs; `max 100000` -> None."""
    fields = (text or "").split()
    if len(fields) != 2:
        return None
    quota, period = _int(fields[0]), _int(fields[1])
    return quota / period if quota and period else None


def _core_of(cpu: int, root: Path) -> tuple[str | None, str]:
    """(package, core) of a logical CPU; hyper-threads of a core share it. A CPU without topology is its own core."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    core = _read(topology / "core_id")
    return _read(topology / "physical_package_id"), f"cpu{cpu}" if core is None else core


def _meminfo(root: Path, key: str) -> int | None:
    """One line of /proc/meminfo (in KiB), as bytes."""
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == f"{key}:":
            value = _int(fields[1])
            return None if value is None else value * KIB
    return None


def _lower(value: int | None, limit: int) -> int:
    return limit if value is None else min(value, limit)


def _cpuinfo(root: Path, key: str) -> str | None:
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip() or None
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
