"""The bus between card and host: bandwidth from pinned and from pageable memory, and what compute can hide of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.common import Place, needs_card
from gpuworkbench.units import MIB

BUCKET_BYTES = 64 * MIB  # memory.offload_bucket_mib
BUCKETS = 16
ROUNDS = 5
PINNED_LIMITS_MIB = (64, 1024, 4096)  # WSL2 may refuse more than about 1 GiB


def bandwidth(place: Place) -> dict[str, Any]:
    """GB/s each way in buckets of 64 MiB, exact bytes back, and seconds of transfer hidden behind products."""
    needs_card(place)
    result: dict[str, Any] = {"pinned_allowed_mib": [size for size in PINNED_LIMITS_MIB if _can_pin(size)]}
    for name, pinned in (("pinned", True), ("pageable", False)):
        host = torch.empty(BUCKET_BYTES, dtype=torch.uint8, pin_memory=pinned)
        card = torch.empty(BUCKET_BYTES, dtype=torch.uint8, device="cuda")
        result[name] = {
            "to_card_gb_s": _gb_s(lambda host=host, card=card: card.copy_(host, non_blocking=True)),
            "to_host_gb_s": _gb_s(lambda host=host, card=card: host.copy_(card, non_blocking=True)),
        }
        place.note(result)
    result |= _round_trip() | _overlap()
    pinned = result["pinned"]
    rates = f"to card {pinned['to_card_gb_s']:.1f} GB/s, to host {pinned['to_host_gb_s']:.1f} GB/s"
    return {**result, "headline": f"{rates}, {result['overlap']:.0%} of it hidden behind products, bytes exact"}


def _can_pin(size_mib: int) -> bool:
    try:
        torch.empty(size_mib * MIB, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return False
    return True


def _gb_s(copy: Callable[[], Any]) -> float:
    return BUCKETS * BUCKET_BYTES / _seconds(lambda: [copy() for _ in range(BUCKETS)]) / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    """Median seconds of `work` until the card has done it; one round before does not count."""
    seconds = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _round_trip() -> dict[str, Any]:
    """Random bytes out, the source poisoned, and back through a side stream."""
    source = torch.randint(0, 256, (BUCKET_BYTES,), dtype=torch.uint8, device="cuda")
    kept, host = source.clone(), torch.empty(BUCKET_BYTES, dtype=torch.uint8, pin_memory=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        host.copy_(source, non_blocking=True)
        source.fill_(255)
        source.copy_(host, non_blocking=True)
    torch.cuda.current_stream().wait_stream(side)
    if not torch.equal(source, kept):
        raise AssertionError("bytes came back changed")
    return {"round_trip_exact": True}


def _overlap() -> dict[str, Any]:
    """Products alone, transfers alone, both at once: the share of the shorter one that the longer one hides."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    host = torch.empty(BUCKET_BYTES, dtype=torch.uint8, pin_memory=True)
    card = torch.empty(BUCKET_BYTES, dtype=torch.uint8, device="cuda")
    side = torch.cuda.Stream()

    def products() -> None:
        for _ in range(60):
            torch.mm(a, a)

    def transfers() -> None:
        with torch.cuda.stream(side):
            for _ in range(BUCKETS):
                card.copy_(host, non_blocking=True)

    def both() -> None:
        transfers()
        products()

    alone, moving, together = _seconds(products), _seconds(transfers), _seconds(both)
    hidden = (alone + moving - together) / min(alone, moving)
    return {"products_s": alone, "transfers_s": moving, "both_s": together, "overlap": max(0.0, min(1.0, hidden))}
