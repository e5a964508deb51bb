"""What may interrupt the loop: signals and control files. Both are looked at between steps only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from gpuworkbench.errors import UserError
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
    """SIGINT and SIGTERM: the first asks for a stop after this step, the second ends the process at once.

    The second one is left to the kernel, so that it also ends a process that hangs within a system call or a kernel.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        """Take over SIGINT and SIGTERM; SIGHUP is ignored, a lost terminal must not end a run."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        name = signal.Signals(number).name
        # os.write: a print could meet itself half done, since a handler runs between any two bytecodes.
        with contextlib.suppress(OSError):
            os.write(2, f"{name}: stopping after this step; the next SIGINT or SIGTERM ends it at once\n".encode())


class Controls:
    """Obeys control files and signals at the loop's safe point.

    `step` says how many steps are done. `save_checkpoint` and `change_setting` act at once and return what to answer;
    a UserError of theirs is a refusal. `alive` is called while the run is paused.
    """

    def __init__(
        self,
        paths: RunPaths,
        events: EventWriter,
        signals: Signals,
        *,
        step: Callable[[], int],
        save_checkpoint: Callable[[], str],
        change_setting: Callable[[str, object], str],
        alive: Callable[[], None],
    ) -> None:
        self.paths = paths
        self.events = events
        self.signals = signals
        self.step = step
        self.save_checkpoint = save_checkpoint
        self.change_setting = change_setting
        self.alive = alive
        self._stop_reason: str | None = None
        self._paused_since: float | None = None

    def obey(self) -> None:
        """Act on everything that came in since the last call; returns when training may go on.

        Raises StopRequested, and whatever saving a checkpoint raises.
        """
        self._poll()
        while self._paused_since is not None and self._stop_reason is None:
            self.alive()
            time.sleep(POLL_WHILE_PAUSED_S)
            self._poll()
        if self._stop_reason is not None:
            raise StopRequested(self._stop_reason)

    def _poll(self) -> None:
        if self.signals.received is not None:
            self._stop_reason = signal.Signals(self.signals.received).name
        for command in poll_commands(self.paths):
            ok, message = self._do(command)
            self.events.emit(
                ControlAck, step=self.step(), id=command.id, command=command.command, ok=ok, message=message
            )
            command.done()

    def _do(self, command: Command) -> tuple[bool, str]:
        match command.command:
            case "pause" if self._paused_since is None:
                self._paused_since = time.monotonic()
                self.events.emit(Paused, step=self.step())
                return True, f"paused at step {self.step()}"
            case "pause":
                return True, "was paused already"
            case "continue" if self._paused_since is not None:
                self.events.emit(Resumed, step=self.step(), paused_s=time.monotonic() - self._paused_since)
                self._paused_since = None
                return True, f"goes on from step {self.step()}"
            case "continue":
                return True, "was not paused"
            case "checkpoint":
                return self._answer(self.save_checkpoint)
            case "stop":
                self._stop_reason = "stop command"
                return True, f"stops after step {self.step()}"
            case "set":
                key, value = str(command.args.get("key", "")), command.args.get("value")
                return self._answer(lambda: self.change_setting(key, value))
        return False, command.problem or f"unknown command {command.command!r}"

    @staticmethod
    def _answer(act: Callable[[], str]) -> tuple[bool, str]:
        try:
            return True, act()
        except UserError as error:
            return False, error.line()
