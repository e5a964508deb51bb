"""`python -m gpuworkbench.tools.parent PID TOOL ARGUMENTS`: run one of the tools, for no longer than process PID lives.

A subprocess that answers one question has no reason to outlive who asked it. Who asked gives its own pid: torch takes
seconds to import, and who dies meanwhile is no longer the parent when this looks.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time

INTERVAL_S = 1.0


def end_with_parent(parent: int) -> None:
    """End this process, at once, when `parent`, which started it, is gone (killed, too: then nobody is told)."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(INTERVAL_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(arguments: list[str]) -> int:
    """Watch, then import the tool and run it; returns its exit code."""
    parent, tool, *others = arguments
    end_with_parent(int(parent))
    code: int = importlib.import_module(f"gpuworkbench.tools.{tool}").main(others)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
