"""A short run in this process with every allocation recorded, by phase, and the operations' own time by kind."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.real_runs import operation_shares
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.memory.strategy import Strategy
from gpuworkbench.memory.tensor_bytes import TensorBytes
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import finish, open_run
from gpuworkbench.training.controls import Signals

START = "start"


class PhaseMarks(Strategy):
    """Says which phase the memory is of. `predict` is while a jump is worked out and judged, which happens in the first
    of its virtual steps; in those after it (`return`) state comes back. A jump over one step has no time for state to
    leave (`predict, one step`). A true step between two jumps is one of `full`'s kind."""

    name = "phase_marks"

    def __init__(self, meter: Any, phase: str) -> None:
        self.meter = meter
        self.phase = phase
        self.is_in_a_jump = False

    def enter_phase(self, phase: str, planned_steps: int | None) -> None:
        self.phase = phase

    def virtual_step(self, remaining_to_true_step: int) -> None:
        jump = "predict" if remaining_to_true_step > 1 else "predict, one step"
        self.meter.mark("return" if self.is_in_a_jump else jump)
        self.is_in_a_jump = remaining_to_true_step > 1

    def before_step(self) -> None:
        self.is_in_a_jump = False
        self.meter.mark("full" if self.phase == "predict" else self.phase)


class CardMeter:
    """The allocator's peak and NVML's use of the card, by label."""

    def __init__(self) -> None:
        self.label = START
        self.allocator: dict[str, int] = {}
        self.nvml: dict[str, int] = {}

    def mark(self, label: str) -> None:
        torch.cuda.synchronize()
        self.allocator[self.label] = max(self.allocator.get(self.label, 0), torch.cuda.max_memory_allocated())
        card = next(iter(probe_cards()), None)
        if card is not None and card.memory_total_bytes is not None and card.memory_free_bytes is not None:
            used = card.memory_total_bytes - card.memory_free_bytes
            self.nvml[self.label] = max(self.nvml.get(self.label, 0), used)
        torch.cuda.reset_peak_memory_stats()
        self.label = label


def record(paths: RunPaths) -> dict[str, Any]:
    """Train the run at `paths` to its end."""
    with TensorBytes() as recording:
        events = EventWriter(paths.events, attempt=1)
        run = open_run(paths, events, HeartbeatWriter(paths.heartbeat), Signals())
        is_cuda = run.device.torch_device.type == "cuda"
        meter = CardMeter() if is_cuda else None
        run.strategies.append(PhaseMarks(meter or recording, run.phases.current))
        outcome = finish(run)
        if meter is not None:
            meter.mark(START)
        events.close()
    assert outcome.status == "completed", outcome.reason
    by_phase = meter.allocator if meter is not None else recording.peaks()
    return {
        "what": "allocator" if is_cuda else "tensor bytes",
        "peak_bytes": {phase: size for phase, size in by_phase.items() if phase not in ("", START)},
        "nvml_bytes": meter.nvml if meter is not None else None,
        "operation_shares": operation_shares(recording.operator_seconds()),
    }
