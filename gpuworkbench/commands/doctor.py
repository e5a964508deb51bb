"""`gpuworkbench doctor`: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import argparse
import sys

from gpuworkbench.commands.output import print_json
from gpuworkbench.errors import ExitCode
from gpuworkbench.gpu.doctor import render, run_checks
from gpuworkbench.headless.terminal import terminal_width, wants_color
from gpuworkbench.runs.paths import runs_dir


def run(arguments: argparse.Namespace) -> int:
    """Print the checks; exit 1 when one failed."""
    checks = run_checks(runs_dir(arguments.runs_dir))
    if arguments.json:
        print_json(checks)
    else:
        is_terminal = sys.stdout.isatty()
        columns = terminal_width() if is_terminal else None
        sys.stdout.write(render(checks, wants_color(is_terminal), columns) + "\n")
    return ExitCode.FAILED if any(check.status == "fail" for check in checks) else ExitCode.OK
