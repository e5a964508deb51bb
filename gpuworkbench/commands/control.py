"""`pause`, `continue`, `checkpoint` and `stop`: a command file for a living trainer, and its answer."""

from __future__ import annotations

import argparse
import sys
import time

from gpuworkbench.commands.follow import wait_for
from gpuworkbench.commands.output import print_json
from gpuworkbench.errors import ExitCode, RunError, WorkbenchError
from gpuworkbench.runs.control import send_command, wait_ack
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import RunPaths, runs_dir
from gpuworkbench.runs.status import derive_status
from gpuworkbench.runs.store import resolve_run

ACK_TIMEOUT_S = 600.0
NOTICE_AFTER_S = 3.0


def run(arguments: argparse.Namespace) -> int:
    """Send the command and wait until the trainer has acted on it.

    Raises RunError when no trainer is at it, WorkbenchError when it refused or did not answer.
    """
    paths = resolve_run(runs_dir(arguments.runs_dir), arguments.run)
    refuse_idle(paths)
    command = arguments.command
    message = send_and_wait(paths, command)
    if command == "stop":
        wait_until_free(paths)
        status = derive_status(paths)
        message = f"{status.status} at step {status.step}; go on with: gpuworkbench --headless --resume {paths.run_id}"
    if arguments.json:
        print_json({"run_id": paths.run_id, "command": command, "ok": True, "message": message})
    else:
        print(f"{paths.run_id}: {message}")
    return ExitCode.OK


def refuse_idle(paths: RunPaths) -> None:
    """RunError when no process trains the run."""
    if probe_lock(paths.lock) is None:
        status = derive_status(paths)
        raise RunError(
            f"{paths.run_id} is {status.status}: no trainer is running",
            f"go on with: gpuworkbench --headless --resume {paths.run_id}",
        )


def send_and_wait(paths: RunPaths, command: str) -> str:
    """Send a command and return what the trainer answered. Raises WorkbenchError."""
    command_id = send_command(paths, command)
    started = time.monotonic()
    noticed = False

    def keep_waiting() -> bool:
        nonlocal noticed
        if not noticed and time.monotonic() - started > NOTICE_AFTER_S:
            noticed = True
            print(f"waiting for {paths.run_id} to finish its step …", file=sys.stderr)
        return probe_lock(paths.lock) is not None

    answer = wait_ack(paths, command_id, ACK_TIMEOUT_S, keep_waiting=keep_waiting)
    if answer is None:
        state = derive_status(paths).status
        raise WorkbenchError(f"{paths.run_id} did not answer {command!r}: it is {state}", "see its trainer.log")
    if not answer.ok:
        raise WorkbenchError(f"{paths.run_id} refused {command!r}: {answer.message}")
    return answer.message or "done"


def wait_until_free(paths: RunPaths) -> None:
    """Return when the trainer has let go of the run (its last checkpoint is written by then)."""
    wait_for(lambda: probe_lock(paths.lock) is None, ACK_TIMEOUT_S)
