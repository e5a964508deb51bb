"""Copies that run beside the computation: on a side stream of a card, in a thread where the CPU computes.

Sources and targets are kept referenced by the transfer until it is waited for: no `record_stream`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Copies = Sequence[tuple[Tensor, Tensor]]  # (target, source), of equal shape and type


class Timing(NamedTuple):
    """Seconds that a transfer took, and those of them that the computation did not wait for it."""

    duration_s: float
    overlapped_s: float


class Transfer(Protocol):
    """Copies under way. They begin after what was computed before them."""

    def wait(self) -> None:
        """What is computed from here on sees them done. On a card the host does not wait."""

    def synchronize(self) -> None:
        """The host sees them done."""

    def timing(self) -> Timing | None:
        """None before `wait`, and on a card until the computation has come there."""


class Mover:
    """Starts transfers of one device, in order."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, copies: Copies) -> Transfer:
        """Begin to copy."""
        return _ThreadTransfer(copies) if self._stream is None else _StreamTransfer(copies, self._stream)


class _ThreadTransfer:
    """The stand-in for a side stream: torch's copies release the interpreter's lock."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._duration_s = self._waited_s = 0.0
        self._is_waited_for = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="offload", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no thread is to be had
            self._run()

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            for target, source in self._copies:
                target.copy_(source)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        self._duration_s = time.perf_counter() - started

    def wait(self) -> None:
        if self._is_waited_for:
            return
        started = time.perf_counter()
        if self._thread.ident is not None:
            self._thread.join()
        self._waited_s = time.perf_counter() - started
        self._is_waited_for = True
        self._copies = ()
        if self._error is not None:
            raise self._error

    synchronize = wait

    def timing(self) -> Timing | None:
        if not self._is_waited_for:
            return None
        return Timing(self._duration_s, max(self._duration_s - self._waited_s, 0.0))


class _StreamTransfer:
    def __init__(self, copies: Copies, stream: torch.cuda.Stream) -> None:
        self._copies = copies
        self._started, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._waits: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self._started.record()
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            self._ended.record()

    def wait(self) -> None:
        if self._waits is not None:
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        torch.cuda.current_stream().wait_event(self._ended)
        after.record()
        self._waits = before, after
        self._copies = ()  # memory that is freed now is reused by this stream alone, which waits

    def synchronize(self) -> None:
        self._ended.synchronize()

    def timing(self) -> Timing | None:
        if self._waits is None or not self._waits[1].query():
            return None
        duration_s = self._started.elapsed_time(self._ended) / 1e3
        return Timing(duration_s, max(duration_s - self._waits[0].elapsed_time(self._waits[1]) / 1e3, 0.0))
