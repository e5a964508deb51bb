"""Tensor bytes over time on a CPU, against allocations whose sizes are known, and the profile as a file."""

from __future__ import annotations

import csv
import io
import json

import torch

from gpuworkbench.memory.allocation_profile import timeline
from gpuworkbench.memory.host_arena import HostArena
from gpuworkbench.memory.tensor_bytes import TensorBytes

MIB = 2**20


def recorded() -> TensorBytes:
    with TensorBytes() as recording:
        kept = torch.empty(MIB, dtype=torch.uint8)
        recording.mark("more")
        dropped = torch.empty(2 * MIB, dtype=torch.uint8)
        del dropped
        recording.mark("host")
        arena = HostArena(8 * MIB, torch.device("cpu"))
        half = torch.empty(MIB // 2, dtype=torch.uint8)
        del half, kept, arena
    return recording


def test_peaks_by_label_are_what_was_allocated() -> None:
    """An arena stands for the host of a machine with a card, so it is not among the tensor bytes."""
    assert recorded().peaks() == {"": MIB, "more": 3 * MIB, "host": 3 * MIB // 2}


def test_the_profile_as_a_file() -> None:
    changes = recorded().changes
    rows = list(csv.DictReader(io.StringIO(timeline(changes, as_csv=True).decode())))
    assert [int(row["bytes"]) for row in rows] == [change.num_bytes for change in changes]
    assert max(int(row["bytes"]) for row in rows if row["label"] == "more") == 3 * MIB
    assert [float(row["seconds"]) for row in rows] == sorted(float(row["seconds"]) for row in rows)
    profile = json.loads(timeline(changes, as_csv=False))
    assert profile["fields"] == ["seconds", "bytes", "label"]
    assert [row[1] for row in profile["changes"]] == [change.num_bytes for change in changes]
    assert timeline([], as_csv=True) == b"seconds,bytes,label\n"
