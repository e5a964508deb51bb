"""What every benchmark shares: on what it ran, and where its result goes."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.io import atomic_write_json

RESULTS = Path(__file__).parent / "results"


def environment(*packages: str) -> dict[str, Any]:
    """Versions, processor, cores, load: what a number needs beside it to mean anything. Unknown is None."""
    return {
        "measured_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0],
    }


def torch_environment(threads: int) -> dict[str, Any]:
    """`environment` plus what torch says about itself. Imports torch."""
    import torch

    return environment("torch", "numpy") | {
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median, extremes and all rounds."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "rounds_s": [round(s, 6) for s in seconds],
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Store `result` as benchmarks/results/<name>.json, whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    atomic_write_json(path, result)
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_page(description: str, page: Path, made_from: Callable[[str], str]) -> None:
    """The command of a script that keeps a page's tables: write them, or with --check tell whether they are old."""
    write_pages(description, {page: made_from})


def write_pages(description: str, pages: Mapping[Path, Callable[[str], str]]) -> None:
    """As `write_page`, of several."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of date")
    arguments = parser.parse_args()
    made = {page: made_from(page.read_text()) for page, made_from in pages.items()}
    if arguments.check:
        sys.exit(int(any(text != page.read_text() for page, text in made.items())))
    for page, text in made.items():
        page.write_text(text)
