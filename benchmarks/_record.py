"""Store a benchmark's results with what they were measured on."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("msgspec", "numpy")


def record(name: str, results: dict[str, Any]) -> Path:
    """Write `results/<name>.json` and return its path."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    body = {"name": name, "measured_utc": time.strftime("%Y-%m-%d", time.gmtime()), "environment": environment()}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(body | {"results": results}), indent=2) + b"\n")
    return path


def environment() -> dict[str, Any]:
    """Processor, cores and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
