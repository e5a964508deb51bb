"""How long transfers took and how much of that compute hid, summed up by step. Clocks here feed the log only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class Moved(NamedTuple):
    """One step's transfers in each direction. `hidden_s` of the seconds ran behind compute."""

    step: int
    in_bytes: int
    in_s: float
    in_hidden_s: float
    out_bytes: int
    out_s: float
    out_hidden_s: float


class HostTimes:
    """Moves within host memory: nothing computes meanwhile."""

    def __init__(self) -> None:
        self._sums = [0, 0.0, 0, 0.0]
        self._done: list[Moved] = []

    @contextmanager
    def inbound(self, num_bytes: int) -> Iterator[None]:
        """Times a move towards the device."""
        started = time.perf_counter()
        yield
        self._sums[0] += num_bytes
        self._sums[1] += time.perf_counter() - started

    @contextmanager
    def outbound(self, num_bytes: int) -> Iterator[None]:
        """Times a move back."""
        started = time.perf_counter()
        yield
        self._sums[2] += num_bytes
        self._sums[3] += time.perf_counter() - started

    def end_step(self, step: int) -> None:
        """Sum up what moved since the last call, if anything did."""
        in_bytes, in_s, out_bytes, out_s = self._sums
        if in_bytes or out_bytes:
            self._done.append(Moved(step, int(in_bytes), in_s, 0.0, int(out_bytes), out_s, 0.0))
        self._sums = [0, 0.0, 0, 0.0]

    def take(self) -> list[Moved]:
        """Everything summed up and not taken yet."""
        done, self._done = self._done, []
        return done


Span = tuple[Any, Any]  # two CUDA events


@dataclass
class _Spans:
    """One step's events."""

    step: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    inbound: list[Span] = field(default_factory=list)
    outbound: list[Span] = field(default_factory=list)
    waits: list[Span] = field(default_factory=list)


class CudaTimes:
    """Times by events on the streams, read once they have passed: the host never waits for a number.

    Hidden of what comes in is what the computing stream did not wait for. What goes out holds up nobody but the fetch
    into the same slot, whose wait is counted there.
    """

    def __init__(self) -> None:
        self._now = _Spans()
        self._pending: deque[_Spans] = deque()

    @contextmanager
    def inbound(self, stream: Any, num_bytes: int) -> Iterator[None]:
        """Times copies towards the device."""
        self._now.in_bytes += num_bytes
        with _span(stream, self._now.inbound):
            yield

    @contextmanager
    def outbound(self, stream: Any, num_bytes: int) -> Iterator[None]:
        """Times copies back."""
        self._now.out_bytes += num_bytes
        with _span(stream, self._now.outbound):
            yield

    @contextmanager
    def waiting(self, stream: Any) -> Iterator[None]:
        """Times how long the computing stream waits."""
        with _span(stream, self._now.waits):
            yield

    def end_step(self, step: int) -> None:
        """Keep the step's events."""
        self._now.step = step
        if self._now.in_bytes or self._now.out_bytes:
            self._pending.append(self._now)
        self._now = _Spans()

    def take(self) -> list[Moved]:
        """The steps all of whose events have passed."""
        done = []
        while self._pending and all(span[1].query() for span in _all_spans(self._pending[0])):
            done.append(_summed(self._pending.popleft()))
        return done


@contextmanager
def _span(stream: Any, spans: list[Span]) -> Iterator[None]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(stream)
    yield
    end.record(stream)
    spans.append((start, end))


def _all_spans(step: _Spans) -> list[Span]:
    return [*step.inbound, *step.outbound, *step.waits]


def _summed(step: _Spans) -> Moved:
    in_s, out_s, waited_s = (
        sum(start.elapsed_time(end) for start, end in spans) / 1000
        for spans in (step.inbound, step.outbound, step.waits)
    )
    return Moved(step.step, step.in_bytes, in_s, max(in_s - waited_s, 0.0), step.out_bytes, out_s, out_s)
