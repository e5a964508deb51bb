"""Starting and resuming trainers off the app's loop: preparation can take minutes, and the screen stays alive.

Threads are daemons: quitting during a preparation ends it, and the data cache is written whole or not at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from textual.message import Message

from gpuworkbench.errors import WorkbenchError
from gpuworkbench.launch.spawn import TrainerProcess, spawn_trainer
from gpuworkbench.runs.create import discard_run
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.text import safe_text

PROGRESS_INTERVAL_S = 0.1

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
    """Nothing was started; `line` says why and what to do."""

    def __init__(self, name: str, line: str) -> None:
        super().__init__()
        self.name = name
        self.line = line


def start_launch(name: str, prepare: Prepare, post: Post, *, is_new: bool) -> threading.Thread:
    """Run `prepare` and start the trainer in a thread; the outcome is posted. `is_new`: the directory is this launch's.

    `prepare` may raise WorkbenchError.
    """
    thread = threading.Thread(
        target=_launch, args=(name, prepare, _safely(post), is_new), name=f"launch {name}", daemon=True
    )
    thread.start()
    return thread


def _launch(name: str, prepare: Prepare, post: Post, is_new: bool) -> None:
    try:
        paths, run_file = prepare(_throttled(name, post))
    except WorkbenchError as error:
        post(LaunchFailed(name, error.line()))
        return
    except Exception as error:  # noqa: BLE001  a bug must become a line on the screen, not a dead thread
        post(LaunchFailed(name, safe_text(f"{type(error).__name__}: {error}", max_chars=400)))
        return
    try:
        trainer = spawn_trainer(paths, run_file)
    except WorkbenchError as error:
        if is_new:
            discard_run(paths)
        post(LaunchFailed(name, error.line()))
        return
    post(LaunchDone(name, trainer))


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
