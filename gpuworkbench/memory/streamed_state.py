"""The strategy behind memory.optimizer_offload = "streamed": begins each step's transfers early, and tells of them.

The first buckets come in while forward and backward compute. The log gets two `offload` events a step, one a direction:
one for each bucket would make it many times longer. On a card they come when their events have passed, a step late.
"""

from __future__ import annotations

from typing import Protocol, cast

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.events.schema import Offload
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.memory.conveyor import Conveyor
from gpuworkbench.memory.strategy import Strategy, StrategyContext
from gpuworkbench.memory.transfer_times import Moved

TARGET = "optimizer state"


class Streamed(Protocol):
    """What this strategy needs of the optimizer."""

    conveyor: Conveyor
    refusal: str

    def prefetch(self) -> None:
        """Begin the next step's first transfers."""


class StreamedState(Strategy):
    """Prefetches, reports, and warns where the host memory could not be pinned."""

    name = "streamed_state"
    optimizer: Streamed
    context: StrategyContext

    def __init__(self) -> None:
        self.phase = "full"
        self.phases: dict[int, str] = {}  # of steps whose transfers were not told yet
        self.has_warned = False

    @classmethod
    def from_config(cls, config: RunConfig) -> StreamedState | None:
        """Where the state is streamed."""
        return cls() if config.memory.optimizer_offload == "streamed" else None

    def attach(self, context: StrategyContext) -> None:
        """The optimizer was built for it."""
        self.context = context
        self.optimizer = cast(Streamed, context.optimizer)

    def enter_phase(self, phase: str, planned_steps: int | None) -> None:
        """Transfers from here on belong to it. The first time the log is open: say what there is to say."""
        self.phase = phase
        if self.optimizer.refusal and not self.has_warned:
            self.context.emit(
                WarningEvent,
                step=self.context.step(),
                code="not_pinned",
                message=f"host memory could not be pinned ({self.optimizer.refusal}); transfers hold up the host",
                hint="free host memory; WSL2 limits pinned memory, see docs/memory-optimizers.md",
            )
        self.has_warned = True

    def before_step(self) -> None:
        """Fetch ahead."""
        self.optimizer.prefetch()

    def after_step(self) -> None:
        """The step that ends is not counted yet."""
        step, lanes = self.context.step() + 1, self.optimizer.conveyor.lanes
        lanes.end_step(step)
        self.phases[step] = self.phase
        for moved in lanes.moved():
            phase = self.phases.pop(moved.step, self.phase)
            self._tell(moved, phase, is_out=False)
            self._tell(moved, phase, is_out=True)

    def _tell(self, moved: Moved, phase: str, *, is_out: bool) -> None:
        self.context.emit(
            Offload,
            step=moved.step,
            op="offload" if is_out else "restore",
            target=TARGET,
            phase=phase,
            num_bytes=moved.out_bytes if is_out else moved.in_bytes,
            freed_bytes=moved.out_bytes if is_out else 0,
            duration_s=moved.out_s if is_out else moved.in_s,
            overlapped_s=moved.out_hidden_s if is_out else moved.in_hidden_s,
        )
