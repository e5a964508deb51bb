"""What may interrupt the loop: signals and control files. Both are looked at between steps only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from gpuworkbench.errors import ConfigError, ExitCode
from gpuworkbench.events.schema import ControlAck, Paused, Resumed
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.runs.control import Command, poll_commands
from gpuworkbench.runs.paths import RunPaths

POLL_WHILE_PAUSED_S = 0.1


class StopRequested(Exception):
    """Finish, checkpoint and exit 75. `reason` is for `run_finished`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Signals:
    """SIGINT and SIGTERM: the first asks for a stop after this step, the second ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        """Take over SIGINT and SIGTERM; SIGHUP is ignored, a lost terminal must not end a run."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(ExitCode.SIGINT if number == signal.SIGINT else ExitCode.SIGTERM)
        self.received = number


class Controls:
    """Obeys control files and signals at the loop's safe point."""

    def __init__(
        self,
        paths: RunPaths,
        events: EventWriter,
        signals: Signals,
        *,
        request_checkpoint: Callable[[], None],
        change_setting: Callable[[str, object], str],
        alive: Callable[[], None],
    ) -> None:
        self.paths = paths
        self.events = events
        self.signals = signals
        self.request_checkpoint = request_checkpoint
        self.change_setting = change_setting
        self.alive = alive
        self._stop_reason: str | None = None
        self._paused_since: float | None = None

    def obey(self, step: int) -> None:
        """Act on everything that came in since the last call; returns when training may go on.

        Raises StopRequested.
        """
        self._poll(step)
        while self._paused_since is not None and self._stop_reason is None:
            self.alive()
            time.sleep(POLL_WHILE_PAUSED_S)
            self._poll(step)
        if self._stop_reason is not None:
            raise StopRequested(self._stop_reason)

    def _poll(self, step: int) -> None:
        if self.signals.received is not None:
            self._stop_reason = signal.Signals(self.signals.received).name
        for command in poll_commands(self.paths):
            ok, message = self._do(command, step)
            self.events.emit(ControlAck, step=step, id=command.id, command=command.command, ok=ok, message=message)
            command.done()

    def _do(self, command: Command, step: int) -> tuple[bool, str]:
        match command.command:
            case "pause" if self._paused_since is None:
                self._paused_since = time.monotonic()
                self.events.emit(Paused, step=step)
                return True, f"paused at step {step}"
            case "pause":
                return True, "was paused already"
            case "continue" if self._paused_since is not None:
                self.events.emit(Resumed, step=step, paused_s=time.monotonic() - self._paused_since)
                self._paused_since = None
                return True, f"goes on from step {step}"
            case "continue":
                return True, "was not paused"
            case "checkpoint":
                self.request_checkpoint()
                return True, f"checkpoint of step {step}"
            case "stop":
                self._stop_reason = "stop command"
                return True, f"stops after step {step}"
            case "set":
                return self._set(command)
        return False, command.problem or f"unknown command {command.command!r}"

    def _set(self, command: Command) -> tuple[bool, str]:
        try:
            return True, self.change_setting(str(command.args.get("key", "")), command.args.get("value"))
        except ConfigError as error:
            return False, error.line()
