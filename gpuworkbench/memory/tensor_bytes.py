"""Bytes of all tensors over time on a CPU: what `torch.cuda.max_memory_allocated` is on a card.

Every allocation and release of torch's CPU allocator, as torch's own profiler records them, kernels' scratch memory
included. What is not torch's (numpy's arrays, the interpreter) is not in it, so memory that stands for the host's of a
machine with a card is taken from numpy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile, record_function

_PREFIX = "gpuworkbench:"


class Change(NamedTuple):
    """The bytes in use from `time_ns` on, and the label that was marked last before."""

    time_ns: int
    num_bytes: int
    label: str


class TensorBytes:
    """A recording from `start` (or `with`) on. Bytes allocated before are unknown to it: begin before the model exists.

    Recording costs memory and time for every operator: for measurements of some steps, not for runs.
    """

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or its notices go to stderr
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        self.changes: list[Change] = []

    def __enter__(self) -> TensorBytes:
        self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.__exit__(kind, error, trace)
        self.changes = _changes(self._profile)

    def mark(self, label: str) -> None:
        """What follows belongs to `label`."""
        with record_function(f"{_PREFIX}{label}"):
            pass

    def operator_seconds(self) -> dict[str, float]:
        """Time of each operator itself, those that it calls left out, once the recording is over."""
        return {each.key: each.self_cpu_time_total / 1e6 for each in self._profile.key_averages()}

    def peaks(self) -> dict[str, int]:
        """The most bytes in use at once, by label ("" before the first); what was in use when it began counts."""
        return peaks(self.changes)


def peaks(changes: Iterable[Change]) -> dict[str, int]:
    """The largest number of bytes by label."""
    found: dict[str, int] = {}
    for change in changes:
        found[change.label] = max(found.get(change.label, 0), change.num_bytes)
    return found


def _changes(recorded: profile) -> list[Change]:
    kineto: Any = recorded.profiler and recorded.profiler.kineto_results
    events = [(event.start_ns(), event.name(), event.nbytes()) for event in kineto.events()]
    changes: list[Change] = []
    num_bytes, label = 0, ""
    for time_ns, name, delta in sorted(events, key=lambda event: event[0]):
        if name.startswith(_PREFIX):
            label = name.removeprefix(_PREFIX)
        elif name == "[memory]":
            num_bytes += delta
        else:
            continue
        changes.append(Change(time_ns, num_bytes, label))
    return changes
