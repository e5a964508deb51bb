"""The loop of a headless run: log to reducer to lines, until the run is over and everything was shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from gpuworkbench.headless.renderer import HeadlessRenderer
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.run_state import RunState


def follow(
    run_events_path: Path,
    renderer: HeadlessRenderer,
    *,
    poll_s: float,
    is_done: Callable[[], bool],
    log: LiveLog | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> RunState:
    """Show the log until `is_done()` and nothing is left to read; returns the last state. Does not print the summary.

    `log`: one that has caught up already, so that only what is new gets shown (a resume, an attach); without it the
    log is shown from its beginning. Raises RunError where the log is not a regular file.
    """
    live = log if log is not None else LiveLog(run_events_path, use_index=False)
    try:
        while True:
            was_done = is_done()  # asked before the log is read: what was written until then is shown
            while (batch := live.poll()).lines:
                renderer.feed(batch.lines, batch.events, live.state())
            if was_done:
                return live.state()
            sleep(poll_s)
    finally:
        live.close()
