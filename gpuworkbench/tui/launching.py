"""Starting and resuming trainers off the app's loop: preparation can take minutes, and the screen stays alive.

After the start the thread watches until the trainer has begun: one that refuses takes its run along.

Threads are daemons: quitting during a preparation ends it, and the data cache is written whole or not at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from textual.message import Message

from gpuworkbench.errors import DeviceBusyError, WorkbenchError
from gpuworkbench.launch.refused import discard_refused, refusal_line
from gpuworkbench.launch.spawn import TrainerProcess, spawn_trainer
from gpuworkbench.runs.create import discard_run
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import tail_events
from gpuworkbench.text import safe_text

PROGRESS_INTERVAL_S = 0.1
START_INTERVAL_S = 0.2
LAUNCH_THREAD, PREVIEW_THREAD = "launch ", "preview "
NATIVE_THREADS = (LAUNCH_THREAD, PREVIEW_THREAD)  # they prepare data, in native code

Post = Callable[[Message], object]
Progress = Callable[[str, float | None], None]
Prepare = Callable[[Progress], tuple[RunPaths, Path]]  # the run and the run file to train by


class LaunchProgress(Message):
    """What a launch is at; `fraction` is None where nobody knows how much is left."""

    def __init__(self, name: str, stage: str, fraction: float | None) -> None:
        super().__init__()
        self.name = name
        self.stage = stage
        self.fraction = fraction


class LaunchDone(Message):
    """A trainer was started."""

    def __init__(self, name: str, trainer: TrainerProcess) -> None:
        super().__init__()
        self.name = name
        self.trainer = trainer


class LaunchFailed(Message):
    """Nothing was started; `line` says why and what to do, `busy` who has the card where that is why."""

    def __init__(self, name: str, line: str, busy: str = "") -> None:
        super().__init__()
        self.name = name
        self.line = line
        self.busy = busy


class LaunchRefused(Message):
    """A trainer that was started refused the run, and what was made for it is gone."""

    def __init__(self, name: str, paths: RunPaths, line: str) -> None:
        super().__init__()
        self.name = name
        self.paths = paths
        self.line = line


class Launch(NamedTuple):
    """What to start. `is_new`: the run directory is this launch's. `queue` and `share`: see `spawn_trainer`."""

    name: str
    prepare: Prepare
    is_new: bool
    queue: bool = False
    share: bool = False


def start_launch(launch: Launch, post: Post) -> threading.Thread:
    """Run `prepare` and start the trainer in a thread; the outcome is posted. `prepare` may raise WorkbenchError."""
    thread = threading.Thread(
        target=_launch, args=(launch, _safely(post)), name=LAUNCH_THREAD + launch.name, daemon=True
    )
    thread.start()
    return thread


def _launch(launch: Launch, post: Post) -> None:
    name = launch.name
    try:
        paths, run_file = launch.prepare(_throttled(name, post))
    except DeviceBusyError as error:
        post(LaunchFailed(name, error.line(), safe_text(error.message)))
        return
    except WorkbenchError as error:
        post(LaunchFailed(name, error.line()))
        return
    except Exception as error:  # noqa: BLE001  a bug must become a line on the screen, not a dead thread
        post(LaunchFailed(name, safe_text(f"{type(error).__name__}: {error}", max_chars=400)))
        return
    try:
        trainer = spawn_trainer(paths, run_file, queue=launch.queue, share=launch.share)
    except WorkbenchError as error:
        if launch.is_new:
            discard_run(paths)
        post(LaunchFailed(name, error.line()))
        return
    post(LaunchDone(name, trainer))
    _watch_start(launch, trainer, run_file, post)


def _watch_start(launch: Launch, trainer: TrainerProcess, run_file: Path, post: Post) -> None:
    """Return once the trainer has begun or ended; take back what was made for one that refused."""
    paths = trainer.paths
    while (code := trainer.exit_code()) is None:
        if any(event.pid == trainer.pid for event in tail_events(paths.events)):
            return
        time.sleep(START_INTERVAL_S)
    line = refusal_line(paths)
    try:
        if discard_refused(paths, run_file, code, is_new_run=launch.is_new, is_new_file=False):
            post(LaunchRefused(launch.name, paths, line))
    except WorkbenchError as error:
        post(LaunchRefused(launch.name, paths, error.line()))


def _throttled(name: str, post: Post) -> Progress:
    """Progress at most ten times a second, and whenever the stage changes."""
    said: tuple[str, float] = ("", 0.0)

    def progress(stage: str, fraction: float | None) -> None:
        nonlocal said
        now = time.monotonic()
        if stage != said[0] or now - said[1] >= PROGRESS_INTERVAL_S:
            said = (stage, now)
            post(LaunchProgress(name, safe_text(stage, max_chars=80), fraction))

    return progress


def _safely(post: Post) -> Post:
    """Posting to an app that has ended is nothing."""

    def post_or_not(message: Message) -> None:
        try:
            post(message)
        except RuntimeError:
            return

    return post_or_not
