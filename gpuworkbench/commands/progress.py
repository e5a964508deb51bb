"""Progress of what comes before a run, data and weights: whole lines on stderr, so that a log stays readable."""

from __future__ import annotations

import time
from collections.abc import Callable

from gpuworkbench.commands.output import say
from gpuworkbench.units import format_duration

INTERVAL_S = 2.0


class StageProgress:
    """A line when a stage begins, and at most one every two seconds within it, with the time that is left.

    `what` it is about stands first: "data: encoding with gpt2 40%".
    """

    def __init__(self, what: str = "data", clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._stage = ""
        self._said_s = 0.0
        self._begun: tuple[float, float] | None = None  # when, and at which fraction

    def __call__(self, stage: str, fraction: float | None) -> None:
        """`fraction` of the whole that is done, None where that is unknown."""
        now = self._clock()
        if stage != self._stage:
            self._begun = None
        elif now - self._said_s < INTERVAL_S:
            return
        if self._begun is None and fraction is not None:
            self._begun = now, fraction
        self._stage, self._said_s = stage, now
        share = "" if fraction is None else f" {fraction:.0%}"
        say(f"{self._what}: {stage}{share}{self._left(now, fraction)}")

    def _left(self, now: float, fraction: float | None) -> str:
        if self._begun is None or fraction is None:
            return ""
        begun_s, begun_at = self._begun
        done = fraction - begun_at
        return f", {format_duration((now - begun_s) * (1 - fraction) / done)} left" if done > 0 else ""
