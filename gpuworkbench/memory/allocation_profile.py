"""Allocation profiles as plain text: the allocator's history of a card as JSON, a CPU's tensor bytes as JSON or CSV.

torch writes such snapshots as pickles, which a reader would have to run; these are the same numbers as data.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpuworkbench.io import atomic_write_bytes
from gpuworkbench.memory.tensor_bytes import Change

HISTORY_ENTRIES = 200_000
_FIELDS = ("seconds", "bytes", "label")


def timeline(changes: Sequence[Change], *, as_csv: bool) -> bytes:
    """Bytes in use over the seconds since the first allocation, with the label of what went on."""
    first_ns = changes[0].time_ns if changes else 0
    rows = [((change.time_ns - first_ns) / 1e9, change.num_bytes, change.label) for change in changes]
    if not as_csv:
        return msgspec.json.encode({"kind": "tensor bytes over time", "fields": _FIELDS, "changes": rows}) + b"\n"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows(rows)
    return text.getvalue().encode()


@contextmanager
def card_snapshot(path: Path | None) -> Iterator[None]:
    """Record the caching allocator's history meanwhile, and write it as JSON; None: do neither."""
    if path is None:
        yield
        return
    memory: Any = torch.cuda.memory
    memory._record_memory_history(max_entries=HISTORY_ENTRIES)
    try:
        yield
        snapshot = memory._snapshot()
    finally:
        memory._record_memory_history(enabled=None)
    atomic_write_bytes(path, msgspec.json.encode({"kind": "CUDA caching allocator", **snapshot}, enc_hook=str) + b"\n")
