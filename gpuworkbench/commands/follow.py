"""Watching a trainer from the command line: as its parent (headless) or from outside (attach)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gpuworkbench.errors import ExitCode
from gpuworkbench.headless.follow import follow
from gpuworkbench.headless.renderer import HeadlessRenderer
from gpuworkbench.launch.spawn import signal_trainer
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import log_end
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.run_state import RunState
from gpuworkbench.text import safe_text

POLL_S = 0.1
LOG_LINES = 12


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


def follow_trainer(
    paths: RunPaths, process: subprocess.Popen[bytes], *, as_json: bool, log: LiveLog | None = None
) -> int:
    """Show a trainer we started until it ends; returns its exit code.

    SIGINT and SIGTERM go to the trainer (the second one ends it at once); SIGHUP ends only the watching.
    """
    renderer = make_renderer(as_json)
    with forwarded_signals(process, renderer):
        state = follow(paths.events, renderer, poll_s=POLL_S, is_done=lambda: process.poll() is not None, log=log)
    code = exit_code_of(process)
    if code != ExitCode.LOCKED:
        renderer.finish(state)
        explain_silent_end(paths, state, code)
    return code


def explain_silent_end(paths: RunPaths, state: RunState, code: int) -> None:
    """A trainer that ended without saying why in its log of events: show the end of its output."""
    if state.is_finished or code in (ExitCode.OK, ExitCode.STOPPED):
        return
    print(f"gpuworkbench: the trainer ended with code {code}; the end of {paths.trainer_log}:", file=sys.stderr)
    for line in log_end(paths.trainer_log, LOG_LINES):
        print(f"  {safe_text(line)}", file=sys.stderr)
    print(f"go on from its last checkpoint: gpuworkbench --headless --resume {paths.run_id}", file=sys.stderr)


def exit_code_of(process: subprocess.Popen[bytes]) -> int:
    """The trainer's exit code; death by signal N is 128 + N, as a shell says it."""
    code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def forwarded_signals(process: subprocess.Popen[bytes], renderer: HeadlessRenderer) -> Iterator[None]:
    """Forward SIGINT and SIGTERM to the trainer, as the signal they are; on SIGHUP leave, and let it train."""
    asked = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        signal_trainer(process, signal.Signals(number))
        if asked == 1:
            renderer.note("stopping after this step, with a checkpoint; once more to end at once", "warning")

    def leave(_number: int, _frame: FrameType | None) -> None:
        os._exit(128 + signal.SIGHUP)

    previous = {
        signal.SIGINT: signal.signal(signal.SIGINT, forward),
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        signal.SIGHUP: signal.signal(signal.SIGHUP, leave),
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait_for(condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> bool:
    """Wait until `condition()`; False when time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
