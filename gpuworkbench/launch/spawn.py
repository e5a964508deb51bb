"""Starting and signalling the trainer process.

The trainer runs in its own session with stdin from /dev/null and its output in trainer.log, never a pipe: a blocked
or dead screen must not stall or kill training.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from gpuworkbench.errors import RunError
from gpuworkbench.launch.queue import take_place
from gpuworkbench.runs.lock import UNKNOWN_PID, probe_lock
from gpuworkbench.runs.paths import RunPaths


def torch_command(module: str, *arguments: str) -> list[str]:
    """The command line of a subprocess that needs torch. -P: nothing is imported from the directory it runs in."""
    return [sys.executable, "-P", "-m", module, *arguments]


def trainer_environment() -> dict[str, str]:
    """The environment of torch subprocesses: unbuffered, and importing this very package."""
    package_parent = str(Path(__file__).resolve().parents[2])
    existing = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # Relative entries, the empty one included, would mean another directory there than here.
    search_path = [package_parent, *(os.path.abspath(part) for part in existing if part)]
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(search_path),
        # NVML counts cards by PCI bus, CUDA by speed unless told otherwise; one order for both.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


class TrainerProcess:
    """A trainer that this process started. It outlives us; we only watch, and pass signals on."""

    def __init__(self, paths: RunPaths, process: subprocess.Popen[bytes]) -> None:
        self.paths = paths
        self._process = process
        self._holds_run = False
        self._waiting: list[signal.Signals] = []

    @property
    def pid(self) -> int:
        """The trainer's process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it lives; death by signal N is 128 + N, as a shell says it."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def holds_run(self) -> bool:
        """Whether it has taken the run's lock; from then on it answers signals by stopping in an orderly way."""
        if not self._holds_run:
            self._holds_run = probe_lock(self.paths.lock) in (self.pid, UNKNOWN_PID)
        return self._holds_run

    def is_settled(self) -> bool:
        """Whether it holds its run, or has ended without it."""
        self.deliver()
        return self.exit_code() is not None or self.holds_run()

    def pass_on(self, number: signal.Signals) -> None:
        """Pass a signal on; one that comes before the trainer can answer it waits until it can, a second one kills.

        Safe within a signal handler.
        """
        if self._holds_run:
            self._send(number)
        elif self._waiting:
            self._send(signal.SIGKILL)
        else:
            self._waiting.append(number)

    def deliver(self) -> None:
        """Pass on what waited, once the trainer holds its run."""
        if self._waiting and self.holds_run():
            while self._waiting:
                self._send(self._waiting.pop())

    def _send(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


def spawn_trainer(paths: RunPaths, run_file: Path, *, queue: bool = False, share: bool = False) -> TrainerProcess:
    """Start `python -m gpuworkbench.training RUN_DIR RUN_FILE`. Raises RunError.

    `queue`: it first waits until the runs before it have left its device; `share`: it uses a card beside others.
    """
    if queue:
        take_place(paths)
    claim = ["--queue"] if queue else ["--share"] if share else []
    command = torch_command("gpuworkbench.training", str(paths.root), run_file.name, *claim)
    log = _open_log(paths.trainer_log)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
            cwd=paths.root,
            env=trainer_environment(),
        )
    except OSError as error:
        raise RunError(f"the trainer cannot be started: {error.strerror or error}", "check memory and limits") from None
    finally:
        os.close(log)
    return TrainerProcess(paths, process)


def _open_log(path: Path) -> int:
    """trainer.log for appending. A link, a FIFO or a device in its place is refused, never followed or waited for."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}", "check the run directory") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RunError(f"{path} is not a regular file", "remove it and try again")
    return fd
