"""Screens that are loaded when they are asked for, so that the first frame waits for Home alone.

A quarter of the app's imports serve screens that nobody has opened yet. `warm_up` loads them in the background once the
first frame is there, so that the first key that wants one does not wait either.
"""

from __future__ import annotations

import threading
from typing import Any

from textual.screen import Screen

from gpuworkbench import registry

COMPARE = "gpuworkbench.tui.screens.compare:CompareScreen"
DOCTOR = "gpuworkbench.tui.screens.doctor:DoctorScreen"
LAUNCH = "gpuworkbench.tui.screens.launch:LaunchScreen"
LIVE = "gpuworkbench.tui.screens.live:Live"
RUNS = "gpuworkbench.tui.screens.runs:Runs"
SAMPLE = "gpuworkbench.tui.screens.sample:SampleScreen"
LATER = (LIVE, LAUNCH, RUNS, COMPARE, SAMPLE, DOCTOR)


def make(target: str, *arguments: Any, **named: Any) -> Screen[Any]:
    """A screen of one of the kinds above."""
    screen: Screen[Any] = registry.load(target)(*arguments, **named)
    return screen


def is_a(screen: object, *targets: str) -> bool:
    """Whether a screen is of one of these kinds, without loading them."""
    kind = type(screen)
    return f"{kind.__module__}:{kind.__qualname__}" in targets


def warm_up() -> None:
    """Load them all, in a daemon thread."""
    threading.Thread(target=_load_all, name="warm up", daemon=True).start()


def _load_all() -> None:
    for target in LATER:
        registry.load(target)
