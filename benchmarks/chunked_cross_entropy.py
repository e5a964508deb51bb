"""Head and loss, forward and backward: peak bytes and time in chunks against all logits at once, on the CPU.

    python -m benchmarks.chunked_cross_entropy [--rows 4096] [--width 256] [--rounds 3] [--threads 1]

Bytes are the allocator's above what both begin with (hidden states and table). The two take turns; with one thread the
processor's seconds are compared, which other programs on the machine do not stretch. Stored as
benchmarks/results/chunked_cross_entropy.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks._record import torch_environment, write_result
from gpuworkbench.memory.chunked_cross_entropy import ChunkedCrossEntropy
from gpuworkbench.memory.tensor_bytes import TensorBytes
from gpuworkbench.models.head import CrossEntropy, plain_cross_entropy

VOCAB_SIZE = 50_257
TABLE_ROWS = 50_304


class Region:
    """Random hidden states (N, C), a table (V_padded, C) and targets."""

    def __init__(self, rows: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(rows, width, generator=generator).requires_grad_()
        self.table = (torch.randn(TABLE_ROWS, width, generator=generator) * 0.02).requires_grad_()
        self.targets = torch.randint(VOCAB_SIZE, (rows,), generator=generator)

    def run(self, cross_entropy: CrossEntropy) -> float:
        """Loss; the gradients are made and dropped."""
        loss = cross_entropy(self.hidden, self.table, self.targets, VOCAB_SIZE)
        loss.backward()
        self.hidden.grad = self.table.grad = None
        return float(loss.detach())


def peak_bytes(region: Region, cross_entropy: CrossEntropy) -> int:
    """The most that the region allocates above its inputs."""
    with TensorBytes() as recording:
        region.run(cross_entropy)
    return max(recording.peaks().values())


def seconds(region: Region, cross_entropy: CrossEntropy) -> float:
    """Processor seconds of one pass."""
    started = time.process_time()
    region.run(cross_entropy)
    return time.process_time() - started


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1024])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    region = Region(arguments.rows, arguments.width)
    ways: dict[str, CrossEntropy] = {"plain": plain_cross_entropy}
    ways |= {f"chunks of {rows}": ChunkedCrossEntropy(rows) for rows in arguments.chunks}
    measured: dict[str, Any] = {
        name: {"loss": region.run(way), "peak_bytes": peak_bytes(region, way)} for name, way in ways.items()
    }
    rounds = [{name: seconds(region, way) for name, way in ways.items()} for _ in range(arguments.rounds)]
    for name, result in measured.items():
        result["cpu_s"] = [times[name] for times in rounds]
        result["peak_ratio"] = result["peak_bytes"] / measured["plain"]["peak_bytes"]
        result["time_ratio"] = statistics.median(times[name] / times["plain"] for times in rounds)
        print(
            f"{name}: {result['peak_bytes'] / 2**20:.0f} MiB ({result['peak_ratio']:.2f}x), "
            f"time {result['time_ratio']:.3f}x, loss {result['loss']:.6f}"
        )
    setup = {"rows": arguments.rows, "width": arguments.width, "table_rows": TABLE_ROWS, "dtype": "float32"}
    print(write_result("chunked_cross_entropy", {**torch_environment(arguments.threads), **setup, "ways": measured}))


if __name__ == "__main__":
    main()
