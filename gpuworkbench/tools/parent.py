"""A subprocess that answers one question has no reason to outlive who asked it."""

from __future__ import annotations

import os
import threading
import time

INTERVAL_S = 1.0


def end_with_parent() -> None:
    """End this process, at once, when the process that started it is gone (killed, too: then nobody is told)."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(INTERVAL_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
