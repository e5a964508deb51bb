"""A subprocess of the planner ends with whoever asked it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.fixtures.processes import no_orphans
from tests.fixtures.tiny_run import Workspace, wait_until

# `late_s`: how long the child is busy, as with importing torch, before it looks at its parent.
CHILD = """
import sys, time
from gpuworkbench.tools.parent import end_with_parent
time.sleep({late_s})
end_with_parent(int(sys.argv[1]))
time.sleep(300)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}, str(os.getpid())])
print(child.pid, flush=True)
child.wait()
"""


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def assert_ends(pid: int, timeout_s: float) -> None:
    try:
        wait_until(lambda: not is_running(pid), timeout_s, "end of the child")
    finally:
        if is_running(pid):
            os.kill(pid, 9)


@pytest.mark.parametrize(("late_s", "wait_s"), [(0.0, 2.0), (1.0, 0.0)], ids=["once it watches", "before it looks"])
def test_a_killed_parent_leaves_no_child(late_s: float, wait_s: float) -> None:
    script = PARENT.format(child=CHILD.format(late_s=late_s))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(wait_s)
        assert is_running(child)
        parent.kill()
    assert_ends(child, 60)


def test_a_planner_killed_at_once_leaves_no_tracer(tmp_path: Path) -> None:
    """Tracing this model takes half a minute, importing torch for it seconds."""
    workspace = Workspace(tmp_path)
    with no_orphans(tmp_path):
        planner = workspace.start("plan", "--tier", "trace", "--preset", "rtx5080_1b")
        process = psutil.Process(planner.pid)
        wait_until(lambda: process.children() or planner.poll() is not None, what="tracer")
        (child,) = process.children()
        planner.kill()
        planner.communicate(timeout=60)
        assert_ends(child.pid, 15)
