"""A subprocess of the planner ends with whoever asked it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

CHILD = "from gpuworkbench.tools.parent import end_with_parent; import time; end_with_parent(); time.sleep(300)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print(child.pid, flush=True)
child.wait()
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_parent_leaves_no_child() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(2)  # the child watches by now
        assert is_running(child)
        parent.kill()
    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        assert not is_running(child)
    finally:
        if is_running(child):
            os.kill(child, 9)
