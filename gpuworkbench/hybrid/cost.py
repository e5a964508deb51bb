"""What things cost. In `exact` mode a table of FLOPs and bytes, stored with the run, so that no decision reads a clock;
in `fast` mode the seconds that were measured."""

from __future__ import annotations

from typing import Any

from gpuworkbench.errors import CheckpointError
from gpuworkbench.parts import Part

FLOPS_PER_BYTE = 10.0  # of a machine that moves a byte in the time of ten operations: the order of CPUs and cards
BACKWARD = 2.0  # a backward pass costs two forward passes


def cost_table(n_params: int, tokens_per_step: int, probe_tokens: int, weight_bytes: int) -> dict[str, float]:
    """Cost by kind, in true optimizer steps: `step`, `probe` (one forward pass of the probe batch), `copy` (the weights
    read and written once, as a snapshot, an undo and a jump do)."""
    forward = 2.0 * n_params
    step = (1.0 + BACKWARD) * forward * tokens_per_step + FLOPS_PER_BYTE * 8.0 * weight_bytes
    return {
        "step": 1.0,
        "probe": forward * probe_tokens / step,
        "copy": FLOPS_PER_BYTE * 2.0 * weight_bytes / step,
    }


class Costs:
    """Costs in units of a true step. `note` tells measured seconds; in exact mode they are not looked at."""

    version = 1
    DECAY = 0.9

    def __init__(self, table: dict[str, float], *, is_exact: bool) -> None:
        self.table = dict(table)
        self.is_exact = is_exact
        self.seconds: dict[str, float] = {}

    def note(self, kind: str, seconds: float) -> None:
        """Fast mode: a duration of this kind, averaged over the last ten or so."""
        if not self.is_exact:
            before = self.seconds.get(kind, seconds)
            self.seconds[kind] = self.DECAY * before + (1.0 - self.DECAY) * seconds

    def of_jump(self, probes: int, seconds: float) -> float:
        """A jump's cost in true steps: its seconds in fast mode once a step's are known, else by the table (a snapshot,
        a move, an undo or the next snapshot are three copies)."""
        step_s = self.seconds.get("step", 0.0)
        if not self.is_exact and step_s > 0.0 and seconds > 0.0:
            return seconds / step_s
        return self.of(probe=float(probes), copy=3.0)

    def of(self, **times: float) -> float:
        """The cost of so many of each kind, in true steps: `of(probe=2, copy=1)`."""
        step_s = self.seconds.get("step", 0.0)
        total = 0.0
        for kind, count in times.items():
            is_measured = step_s > 0.0 and kind in self.seconds
            total += count * (self.seconds[kind] / step_s if is_measured else self.table[kind])
        return total

    def state(self) -> Part:
        """The table that this run decides by, and what was measured."""
        return Part(values={"table": dict(self.table), "seconds": dict(self.seconds)})

    def load(self, part: Part) -> None:
        """The run's own table, even where another version of the program would make another one."""
        for name in ("table", "seconds"):
            values: Any = part.values.get(name)
            if not isinstance(values, dict) or not all(isinstance(v, int | float) for v in values.values()):
                raise CheckpointError(f"Costs: {name} is {str(values)[:40]!r} in the checkpoint")
        self.table, self.seconds = dict(part.values["table"]), dict(part.values["seconds"])
