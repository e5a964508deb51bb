"""Work off the app's loop: a daemon thread, whose outcome comes back to the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from textual.app import App

from gpuworkbench.errors import WorkbenchError

T = TypeVar("T")


def in_background(
    app: App[int], work: Callable[[], T], done: Callable[[T], None], failed: Callable[[WorkbenchError], None], name: str
) -> threading.Thread:
    """Run `work` in a thread; `done` or `failed` is then called on the app's loop, where there still is one."""

    def run() -> None:
        try:
            result = work()
        except WorkbenchError as error:
            _tell(app, failed, error)
        except Exception as error:  # noqa: BLE001  a bug must become a line on the screen, not a dead thread
            _tell(app, failed, WorkbenchError(f"{type(error).__name__}: {error}"))
        else:
            _tell(app, done, result)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def _tell(app: App[int], callback: Callable[[T], None], value: T) -> None:
    try:
        app.call_from_thread(callback, value)
    except RuntimeError:
        return  # the app has ended
