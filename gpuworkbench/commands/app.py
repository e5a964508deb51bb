"""The interactive app: `gpuworkbench`, and `--preset` or `--resume` without `--headless`.

A run that the command line names is checked, created and started before the app opens, so every refusal is one line
and an exit code, as without a screen.
"""

from __future__ import annotations

import argparse
import gc
import sys

from gpuworkbench.errors import UsageError
from gpuworkbench.launch.spawn import TrainerProcess
from gpuworkbench.runs.paths import runs_dir


def open_app(arguments: argparse.Namespace, started: TrainerProcess | None = None) -> int:
    """Run the app, on the run that was just started if there is one; returns the exit code."""
    gc.disable()  # nothing that imports make is garbage: looking for it costs a tenth of the time to the first frame
    from gpuworkbench.config.user_settings import SettingsStore, user_settings_path
    from gpuworkbench.tui.app import run_app
    from gpuworkbench.tui.services import Services

    gc.freeze()
    gc.enable()
    services = Services(runs_dir=runs_dir(arguments.runs_dir), settings=SettingsStore(user_settings_path()))
    if started is None:
        return run_app(services)
    services.trainers.add(started)
    return run_app(services, started.paths)


def require_terminal(arguments: argparse.Namespace) -> None:
    """UsageError where the app cannot be shown."""
    if arguments.json:
        raise UsageError("--json needs --headless or a command", "the app writes no JSON")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the app needs a terminal", "add --headless, or --detach to start a run and return")
