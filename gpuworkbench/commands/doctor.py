"""`gpuworkbench doctor`: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import argparse
import os
import sys

from gpuworkbench.commands.output import print_json
from gpuworkbench.errors import ExitCode
from gpuworkbench.gpu.doctor import render, run_checks
from gpuworkbench.runs.paths import runs_dir


def run(arguments: argparse.Namespace) -> int:
    """Print the checks; exit 1 when one failed."""
    checks = run_checks(runs_dir(arguments.runs_dir))
    if arguments.json:
        print_json(checks)
    else:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(render(checks, color) + "\n")
    return ExitCode.FAILED if any(check.status == "fail" for check in checks) else ExitCode.OK
