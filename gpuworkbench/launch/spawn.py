"""Starting and signalling the trainer process.

The trainer runs in its own session with stdin from /dev/null and its output in trainer.log, never a pipe: a blocked
or dead screen must not stall or kill training.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gpuworkbench.runs.paths import RunPaths


def trainer_environment() -> dict[str, str]:
    """The environment of torch subprocesses: unbuffered, and importing this very package."""
    package_parent = str(Path(__file__).resolve().parents[2])
    existing = os.environ.get("PYTHONPATH", "")
    search_path = os.pathsep.join(part for part in (package_parent, existing) if part)
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": search_path,
        # NVML counts cards by PCI bus, CUDA by speed unless told otherwise; one order for both.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def spawn_trainer(paths: RunPaths) -> subprocess.Popen[bytes]:
    """Start `python -m gpuworkbench.training RUN_DIR`; it outlives this process. Raises OSError."""
    with open(paths.trainer_log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gpuworkbench.training", str(paths.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
            cwd=paths.root,
            env=trainer_environment(),
        )


def signal_trainer(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a trainer that may have ended already."""
    if process.poll() is None:
        process.send_signal(number)
