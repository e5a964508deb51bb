"""What `bench memory` measured: one file, whole or not at all. Bytes and seconds; None is unknown."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class BenchPlan(Struct, frozen=True, kw_only=True):
    """What is to be measured. `snapshot` names a file for the allocation profile of one case."""

    preset: str
    label: str
    steps: int  # of the training whose loss is compared
    rounds: int
    timed_steps: int  # of each round
    virtual_steps: int  # of the predicted stretch
    cases: tuple[str, ...]
    snapshot: str | None = None
    snapshot_case: str = ""


class CaseResult(Struct, frozen=True, kw_only=True):
    """One case. Peaks are the allocator's on a card, and the tensors' bytes on a CPU."""

    name: str
    changed: dict[str, Any]
    refused: str = ""
    peak_full_bytes: int | None = None
    peak_predict_bytes: int | None = None
    step_times_s: tuple[float, ...] = ()  # the median of each round
    step_time_ratio: float | None = None  # to plain: median over the rounds of the ratio within one
    switch_s: float | None = None  # what the computation waits at the borders of a predicted stretch
    val_loss: float | None = None
    diverged: str = ""
    offloaded_bytes: int = 0  # in the measured steps, both ways
    offload_s: float = 0.0
    offload_hidden_s: float = 0.0


class BenchResult(Struct, frozen=True, kw_only=True):
    """A whole measurement and what it ran on."""

    plan: BenchPlan
    memory: str  # "allocator" or "tensors"
    device: str
    environment: dict[str, Any]
    cases: tuple[CaseResult, ...]
