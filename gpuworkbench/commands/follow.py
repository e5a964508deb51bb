"""Watching a trainer from the command line: as its parent (headless) or from outside (attach)."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gpuworkbench.commands.output import say
from gpuworkbench.headless.follow import follow
from gpuworkbench.headless.renderer import HeadlessRenderer
from gpuworkbench.launch.spawn import TrainerProcess
from gpuworkbench.runs.heartbeat import PHASE_QUEUED, read_heartbeat
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths, name_to_type
from gpuworkbench.runs.status import read_config
from gpuworkbench.runs.tail import log_end
from gpuworkbench.runs.turns import ahead_of, describe_wait, device_of_table
from gpuworkbench.state.live_log import LiveLog

Handler = Callable[[int, FrameType | None], None]
POLL_S = 0.1
QUEUE_INTERVAL_S = 0.5
LOG_LINES = 12


class ForwardedSignals:
    """SIGINT and SIGTERM of this process, meant for the trainer; those that come while it is spawned wait for it."""

    def __init__(self) -> None:
        self.n_asked = 0
        self._trainer: TrainerProcess | None = None
        self._waiting: list[signal.Signals] = []

    @property
    def trainer(self) -> TrainerProcess | None:
        """Where the signals go."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: TrainerProcess) -> None:
        self._trainer = trainer
        while self._waiting:
            trainer.pass_on(self._waiting.pop(0))

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler. Prints nothing: it may run in the middle of a print."""
        self.n_asked += 1
        if self._trainer is None:
            self._waiting.append(signal.Signals(number))
        else:
            self._trainer.pass_on(signal.Signals(number))


@contextmanager
def forwarded_signals() -> Iterator[ForwardedSignals]:
    """Forward SIGINT and SIGTERM to the trainer, as the signal they are; on SIGHUP leave, and let it train."""
    signals = ForwardedSignals()

    def leave(_number: int, _frame: FrameType | None) -> None:
        os._exit(128 + signal.SIGHUP)

    forward = signals.handle
    handlers: dict[signal.Signals, Handler] = {signal.SIGINT: forward, signal.SIGTERM: forward}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup: the terminal may go, the watching goes on
        handlers[signal.SIGHUP] = leave
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def make_renderer(as_json: bool) -> HeadlessRenderer:
    """The renderer of this process's streams; people's text goes to stderr when stdout carries JSON."""
    people = sys.stderr if as_json else sys.stdout
    return HeadlessRenderer(sys.stdout, sys.stderr, json=as_json, color=None, is_terminal=people.isatty())


def caught_up_log(paths: RunPaths, *, show_from_start: bool) -> LiveLog:
    """The run's log: at its beginning, or caught up so that only what is new gets shown."""
    log = LiveLog(paths.events, use_index=not show_from_start)
    if not show_from_start:
        log.catch_up()
    return log


def follow_trainer(trainer: TrainerProcess, signals: ForwardedSignals, log: LiveLog, *, as_json: bool) -> int:
    """Show a trainer we started until it ends; returns its exit code."""
    renderer = make_renderer(as_json)
    queue = QueueNotes(trainer.paths, renderer.note)
    has_noted = False

    def is_done() -> bool:
        nonlocal has_noted
        trainer.deliver()
        queue.look()
        if signals.n_asked and not has_noted:
            has_noted = True
            stopping = "stopping after this step, with a checkpoint; once more to end at once"
            renderer.note("leaving the queue" if queue.is_waiting else stopping, "warning")
        return trainer.exit_code() is not None

    state = follow(trainer.paths.events, renderer, poll_s=POLL_S, is_done=is_done, log=log)
    code = trainer.exit_code()
    assert code is not None
    renderer.finish(state, name_to_type(trainer.paths))
    if not state.is_finished or state.exit_code != code:
        explain_silent_end(trainer.paths, code)
    return code


class QueueNotes:
    """Says whom a queued run waits for, whenever that changes."""

    def __init__(self, paths: RunPaths, note: Callable[[str], object]) -> None:
        self.is_waiting = False
        self._paths = paths
        self._note = note
        self._said = ""
        self._look_at_s = 0.0

    def look(self) -> None:
        """Look at most every `QUEUE_INTERVAL_S`."""
        if time.monotonic() < self._look_at_s:
            return
        self._look_at_s = time.monotonic() + QUEUE_INTERVAL_S
        beat = read_heartbeat(self._paths.heartbeat)
        self.is_waiting = beat is not None and beat.phase == PHASE_QUEUED and probe_lock(self._paths.lock) is not None
        text = ""
        if self.is_waiting:
            text = f"queued: {describe_wait(ahead_of(self._paths, device_of_table(read_config(self._paths))))}"
        elif self._said:
            text = "its turn has come"
        if text != self._said:
            self._said = text
            self._note(text)


def explain_silent_end(paths: RunPaths, code: int) -> None:
    """A trainer that ended without saying why in its log of events: the signal, its last words, what is saved."""
    cause = f"by signal {code - 128}" if code > 128 else f"with code {code}"
    say(f"gpuworkbench: the trainer was ended {cause}; {saved_so_far(paths)}")
    show_log_end(log_end(paths.trainer_log, LOG_LINES), paths)


def show_log_end(lines: tuple[str, ...], paths: RunPaths) -> None:
    """The last lines of trainer.log, where there are any."""
    if lines:
        say(f"the end of {paths.trainer_log}:")
    for line in lines:
        say(f"  {line}")


def saved_so_far(paths: RunPaths) -> str:
    """The last checkpoint, and how to go on from it."""
    references = list_checkpoints(paths)
    if not references:
        return "it has no checkpoint yet"
    step = references[0].step
    return f"its last checkpoint is of step {step}: gpuworkbench --headless --resume {shlex.quote(name_to_type(paths))}"


def wait_for(condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> bool:
    """Wait until `condition()`; False when time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
