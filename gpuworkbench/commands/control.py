"""`pause`, `continue`, `checkpoint` and `stop`: a command file for a living trainer, and its answer."""

from __future__ import annotations

import argparse
import shlex
import time

from gpuworkbench.commands.follow import wait_for
from gpuworkbench.commands.output import print_json, say, tell
from gpuworkbench.errors import ExitCode, RunError, WorkbenchError
from gpuworkbench.runs.control import send_command, wait_ack
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths, name_to_type, runs_dir
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.runs.store import resolve_run
from gpuworkbench.runs.tail import WIDE_TAIL_BYTES, Glimpse, tail_events

ACK_TIMEOUT_S = 600.0
NOTICE_AFTER_S = 3.0
STATUS_INTERVAL_S = 2.0


def run(arguments: argparse.Namespace) -> int:
    """Send the command and wait until the trainer has acted on it.

    Raises RunError when no trainer is at it, WorkbenchError when it refused, failed or did not answer.
    """
    paths = resolve_run(runs_dir(arguments.runs_dir), arguments.run)
    refuse_idle(paths)
    command = arguments.command
    sent_unix_s = time.time()
    answer = send_and_wait(paths, command)
    message = (answer.message if answer else None) or "done"
    if command == "checkpoint" and answer is not None:
        message = wait_until_saved(paths, answer.step, sent_unix_s)
    if command == "stop":
        message = wait_until_stopped(paths)
    if arguments.json:
        print_json({"run_id": paths.run_id, "command": command, "ok": True, "message": message})
    else:
        tell(f"{paths.run_id}: {message}")
    return ExitCode.OK


def refuse_idle(paths: RunPaths) -> None:
    """RunError when no process trains the run."""
    if probe_lock(paths.lock) is None:
        status = derive_status(paths)
        raise RunError(
            f"{paths.run_id} is {status.status}: no trainer is running",
            f"go on with: gpuworkbench --headless --resume {shlex.quote(name_to_type(paths))}",
        )


def send_and_wait(paths: RunPaths, command: str) -> Glimpse | None:
    """Send a command and return what the trainer answered; None for a `stop` that the run's own end overtook.

    Raises WorkbenchError.
    """
    command_id = send_command(paths, command)
    patience = _Patience(paths)
    answer = wait_ack(paths, command_id, ACK_TIMEOUT_S, keep_waiting=patience.goes_on)
    if answer is None:
        report = derive_status(paths)
        if command == "stop" and report.status in (RunStatus.COMPLETED, RunStatus.STOPPED):
            return None
        reason = f" ({report.reason})" if report.reason else ""
        hint = "it will act on it when it goes on" if report.status.is_live else "see its trainer.log"
        raise WorkbenchError(f"{paths.run_id} did not answer {command!r}: it is {report.status}{reason}", hint)
    if not answer.ok:
        raise WorkbenchError(f"{paths.run_id} refused {command!r}: {answer.message}")
    return answer


class _Patience:
    """Waits for a trainer as long as it lives and gets on; says once that it waits."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.notice_at = time.monotonic() + NOTICE_AFTER_S
        self.look_at = time.monotonic() + STATUS_INTERVAL_S

    def goes_on(self) -> bool:
        """Whether there is a trainer that may still answer."""
        now = time.monotonic()
        if now > self.notice_at:
            self.notice_at = float("inf")
            say(f"waiting for {self.paths.run_id} to finish its step …")
        if now > self.look_at:
            self.look_at = now + STATUS_INTERVAL_S
            if derive_status(self.paths).status is RunStatus.STALLED:
                return False
        return probe_lock(self.paths.lock) is not None


def wait_until_saved(paths: RunPaths, step: int, since_unix_s: float) -> str:
    """Return when the checkpoint of `step` is on the disk. Raises WorkbenchError where it could not be written."""
    outcome: list[str | None] = []

    def is_over() -> bool:
        saved = any(reference.step == step for reference in list_checkpoints(paths))
        failed = None if saved else _failure(paths, step, since_unix_s)
        if saved or failed is not None or probe_lock(paths.lock) is None:
            outcome.append("" if saved else failed or f"{paths.run_id} ended before the checkpoint was written")
        return bool(outcome)

    if not wait_for(is_over, ACK_TIMEOUT_S):
        raise WorkbenchError(f"the checkpoint of step {step} is still being written", "look again with `runs`")
    if outcome[0]:
        raise WorkbenchError(outcome[0], "see its trainer.log")
    return f"checkpoint of step {step} is saved"


def _failure(paths: RunPaths, step: int, since_unix_s: float) -> str | None:
    """The warning that the checkpoint of `step` could not be written, if one came since."""
    warnings = (event for event in tail_events(paths.events, WIDE_TAIL_BYTES) if event.code == "checkpoint_failed")
    return next((w.message for w in warnings if w.step == step and w.time_unix_s >= since_unix_s), None)


def wait_until_stopped(paths: RunPaths) -> str:
    """Return how the run ended, once the trainer has let go of it. Raises WorkbenchError where its state is not saved.

    Its last checkpoint is written by then.
    """
    wait_for(lambda: probe_lock(paths.lock) is None, ACK_TIMEOUT_S)
    report = derive_status(paths)
    if report.status is RunStatus.COMPLETED:
        return f"completed at step {report.step}"
    if report.status is not RunStatus.STOPPED:
        raise WorkbenchError(f"{paths.run_id} is {report.status}: {report.reason}", "see its trainer.log")
    go_on = f"gpuworkbench --headless --resume {shlex.quote(name_to_type(paths))}"
    return f"stopped at step {report.step}; go on with: {go_on}"
