"""The phase that steps belong to, told to the log and to every memory strategy when it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from gpuworkbench.events.schema import PhaseChanged
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.memory.strategy import Strategy

FULL = "full"


class Phases:
    """Keeps the current phase. Without the hybrid trainer it is `full` from the first step to the last."""

    def __init__(
        self,
        events: EventWriter,
        strategies: Sequence[Strategy],
        precisions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`precisions`: what each phase computes in, in words; the reason of a change says it where it is not fp32."""
        self.events = events
        self.precisions = precisions
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
        precision = self.precisions.get(self.current, "fp32")
        self.events.emit(
            PhaseChanged,
            step=step,
            from_phase=before,
            to_phase=self.current,
            reason=reason if precision.startswith("fp32") else f"{reason}; {precision}",
            planned_steps=planned_steps,
        )
        for strategy in self.strategies:
            strategy.enter_phase(self.current, planned_steps)
