"""The phase that steps belong to, told to the log and to every memory strategy when it changes."""

from __future__ import annotations

from collections.abc import Sequence

from gpuworkbench.events.schema import PhaseChanged
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.memory.strategy import Strategy

FULL = "full"


class Phases:
    """Keeps the current phase. Without the hybrid trainer it is `full` from the first step to the last."""

    def __init__(self, events: EventWriter, strategies: Sequence[Strategy]) -> None:
        self.events = events
        self.strategies = strategies
        self.current = FULL

    def announce(self, step: int, reason: str, planned_steps: int | None) -> None:
        """An attempt begins in the current phase."""
        self._tell(step, None, reason, planned_steps)

    def change(self, step: int, phase: str, reason: str, planned_steps: int | None = None) -> None:
        """The steps after `step` belong to `phase`."""
        before, self.current = self.current, phase
        self._tell(step, before, reason, planned_steps)

    def _tell(self, step: int, before: str | None, reason: str, planned_steps: int | None) -> None:
        self.events.emit(
            PhaseChanged,
            step=step,
            from_phase=before,
            to_phase=self.current,
            reason=reason,
            planned_steps=planned_steps,
        )
        for strategy in self.strategies:
            strategy.enter_phase(self.current, planned_steps)
