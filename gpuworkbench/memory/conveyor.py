"""Buckets of a host arena on their way through staging slots on the device: fetch, compute there, give back.

On a card two side streams carry them, one in and one out, beside the stream that computes; events order them, and the
host waits for none. On a CPU the same moves happen at once, and the source of each move is filled with NaN: state that
was not brought back is seen.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gpuworkbench.memory.transfer_times import CudaTimes, HostTimes, Moved

POISON = float("nan")


class Range(NamedTuple):
    """Elements of the arena that travel together."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start


class Lanes(Protocol):
    """How bytes move between the arena and a slot."""

    def bring_in(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Begin to fill `target` (a slot's) from the arena, once the slot is free."""

    def wait_for(self, slot: int) -> None:
        """What is computed from here on sees what was brought into the slot."""

    def bring_back(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Begin to write the slot's content to the arena, once what was computed on it is done."""

    def finish(self) -> None:
        """Return when nothing is on its way."""

    def moved(self) -> list[Moved]:
        """Finished steps' transfers that were not told yet, the oldest first."""

    def end_step(self, step: int) -> None:
        """The transfers since the last call belong to `step`."""


class Conveyor:
    """Moves `ranges` of `arena` (rows, elements) through as many slots as there are in `staging`."""

    def __init__(self, arena: Tensor, ranges: list[Range], slots: int, device: torch.device) -> None:
        self.arena = arena
        self.ranges = ranges
        width = max(each.size for each in ranges)
        self.staging = torch.empty(slots, arena.shape[0], width, dtype=arena.dtype, device=device)
        self.lanes: Lanes = CudaLanes(device, slots) if device.type == "cuda" else HostLanes()
        self._is_here: set[int] = set()  # ranges that were fetched and not given back

    def fetch(self, number: int) -> None:
        """Begin to bring range `number` to its slot; nothing where it is there or on its way."""
        if number not in self._is_here:
            self._is_here.add(number)
            self.lanes.bring_in(self._slot(number), self._staged(number), self._stored(number))

    def take(self, number: int) -> Tensor:
        """The range's content on the device, (rows, size), for what is computed next."""
        self.fetch(number)
        self.lanes.wait_for(self._slot(number))
        return self._staged(number)

    def give_back(self, number: int) -> None:
        """Begin to return range `number`, with what the device made of it."""
        self._is_here.discard(number)
        self.lanes.bring_back(self._slot(number), self._stored(number), self._staged(number))

    def settle(self) -> None:
        """Return when the arena holds everything: what was fetched ahead goes back as it came."""
        for number in sorted(self._is_here):
            self.give_back(number)
        self.lanes.finish()

    def _slot(self, number: int) -> int:
        return number % self.staging.shape[0]

    def _staged(self, number: int) -> Tensor:
        return self.staging[self._slot(number), :, : self.ranges[number].size]

    def _stored(self, number: int) -> Tensor:
        start, stop = self.ranges[number]
        return self.arena[:, start:stop]


class HostLanes:
    """Moves that are done when the call returns: nothing is hidden behind compute."""

    def __init__(self) -> None:
        self.times = HostTimes()

    def bring_in(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Move, and poison the arena's part."""
        with self.times.inbound(source.nbytes):
            target.copy_(source)
        source.fill_(POISON)

    def wait_for(self, slot: int) -> None:
        """It is there."""

    def bring_back(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Move, and poison the slot."""
        with self.times.outbound(source.nbytes):
            target.copy_(source)
        source.fill_(POISON)

    def finish(self) -> None:
        """Nothing is on its way."""

    def moved(self) -> list[Moved]:
        """All of it."""
        return self.times.take()

    def end_step(self, step: int) -> None:
        """Sum up."""
        self.times.end_step(step)


class CudaLanes:
    """Two side streams. Both are in order, so a slot's last event covers everything before it.

    A range is fetched again only after its return: the fetch waits for the last return from its slot, which was begun
    later than the range's own. The slots live as long as the lanes, so no allocation is reused under a copy.
    """

    def __init__(self, device: torch.device, slots: int) -> None:
        self.device = device
        self.inbound = torch.cuda.Stream(device)
        self.outbound = torch.cuda.Stream(device)
        self.ready = [torch.cuda.Event() for _ in range(slots)]
        self.free = [torch.cuda.Event() for _ in range(slots)]
        self.times = CudaTimes()
        current = torch.cuda.current_stream(device)
        for event in self.free:
            event.record(current)  # the slots' memory is the computing stream's until here

    def bring_in(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Row by row: a row of a range is contiguous on both sides."""
        with torch.cuda.stream(self.inbound):
            self.inbound.wait_event(self.free[slot])
            with self.times.inbound(self.inbound, source.nbytes):
                for to, row in zip(target, source, strict=True):
                    to.copy_(row, non_blocking=True)
            self.ready[slot].record(self.inbound)

    def wait_for(self, slot: int) -> None:
        """The computing stream waits; how long is measured there."""
        current = torch.cuda.current_stream(self.device)
        with self.times.waiting(current):
            current.wait_event(self.ready[slot])

    def bring_back(self, slot: int, target: Tensor, source: Tensor) -> None:
        """After the computing stream's work so far."""
        self.outbound.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.outbound):
            # what was only fetched ahead may still be on its way in
            self.outbound.wait_event(self.ready[slot])
            with self.times.outbound(self.outbound, source.nbytes):
                for to, row in zip(target, source, strict=True):
                    to.copy_(row, non_blocking=True)
            self.free[slot].record(self.outbound)

    def finish(self) -> None:
        """The host waits for both streams: what it reads next is what was written."""
        self.inbound.synchronize()
        self.outbound.synchronize()

    def moved(self) -> list[Moved]:
        """Those steps whose last event has passed."""
        return self.times.take()

    def end_step(self, step: int) -> None:
        """Keep the step's events until they have passed."""
        self.times.end_step(step)
