"""Seconds per training step on a CPU: our model, loss and optimizer against a plain loop on the same sizes.

    python -m benchmarks.step_time [--rounds 8] [--threads 2] [--sizes gpt2_small,quickstart] [--compile]

All arms live in one process and take turns, so that whatever else the machine does meets all of them. An arm's turn is
one step that is not counted (caches, allocator) and two that are. A ratio above 1 is faster than the plain loop; it
is the median over the rounds of plain / arm. Stored after each precision as benchmarks/results/step_time_<size>.json.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks._record import summary, torch_environment, write_result
from benchmarks.plain_loop import PlainLoop, Size
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.loader import Override
from gpuworkbench.config.schema import OptimizerConfig, ScheduleConfig
from gpuworkbench.data import load_same_tokens
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.launch.create import LaunchRequest, create
from gpuworkbench.memory.chunked_cross_entropy import ChunkedCrossEntropy
from gpuworkbench.memory.precision import autocast, resolve_precision
from gpuworkbench.models import build_model, linear
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.training.attempt import load_run_config, make_controls
from gpuworkbench.training.controls import Signals
from gpuworkbench.training.host_allocator import keep_freed_memory
from gpuworkbench.training.loop import obey_controls, train_one_step
from gpuworkbench.training.lr_schedule import lr_multiplier
from gpuworkbench.training.optim import build_optimizer, set_lr
from gpuworkbench.training.setup import build_run

SIZES = {
    "quickstart": Size(4, 4, 192, 4096, 128, 8, 128),
    "quickstart_256": Size(4, 4, 256, 4096, 128, 8, 128),
    "gpt2_small": Size(12, 12, 768, 50304, 1024, 4, 64),
}
CPU = torch.device("cpu")
COUNTED_STEPS = 2


class Arm(Protocol):
    """Something that can do one training step on a batch."""

    def step(self, idx: Tensor, targets: Tensor) -> float: ...


class OurModules:
    """One step with the modules that the trainer uses, without its telemetry."""

    def __init__(self, size: Size, precision: str, *, chunk_rows: int = 0, compiled: bool = False) -> None:
        config = Gpt2Config(
            n_layer=size.n_layer,
            n_head=size.n_head,
            n_embd=size.n_embd,
            vocab_size=size.vocab_size,
            seq_len=size.seq_len,
        )
        self.model = build_model(config, seed=0)
        if chunk_rows:
            ChunkedCrossEntropy(chunk_rows).apply(self.model)
        self.forward: Callable[[Tensor, Tensor], Tensor] = torch.compile(self.model) if compiled else self.model
        self.precision = resolve_precision(precision, CPU)
        self.optimizer_config = OptimizerConfig()
        self.optimizer = build_optimizer(self.model, self.optimizer_config, CPU)
        self.steps = 0

    def step(self, idx: Tensor, targets: Tensor) -> float:
        self.steps += 1
        set_lr(self.optimizer, self.optimizer_config.lr * lr_multiplier(self.steps, ScheduleConfig(), 1000))
        with autocast(self.precision, CPU):
            loss = self.forward(idx, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Trainer:
    """The real loop's step: control poll, data, schedule, clipping, events, heartbeat, index, in `exact` mode."""

    def __init__(self, size: Size, precision: str, folder: Path) -> None:
        values = {
            "model.n_layer": size.n_layer,
            "model.n_head": size.n_head,
            "model.n_embd": size.n_embd,
            "model.seq_len": size.seq_len,
            "model.vocab_size": size.vocab_size,
            "data.source": "synthetic",
            "data.tokenizer": "byte",
            "train.micro_batch_size": size.micro_batch_size,
            "train.seq_len": size.train_seq_len,
            "train.threads": torch.get_num_threads(),
            "train.max_steps": 1_000_000,
            "eval.interval_steps": 0,
            "memory.precision": precision,
        }
        sets = tuple(Override(key, value, "benchmark") for key, value in values.items())
        paths = create(LaunchRequest(preset="quickstart", runs_dir=folder, sets=sets, environ={}))
        config, _ = load_run_config(paths)
        events, heartbeat = EventWriter(paths.events, attempt=1), HeartbeatWriter(paths.heartbeat)
        heartbeat.start()
        self.run = build_run(paths, config, load_same_tokens(config), events, heartbeat)
        self.run.controls = make_controls(self.run, Signals())
        self.run.telemetry.start_window()

    def step(self, idx: Tensor, targets: Tensor) -> float:
        obey_controls(self.run)
        if train_one_step(self.run) is not None:
            raise RuntimeError("a non-finite step")
        return math.nan  # the loss is in the run's log


def give_freed_memory_back() -> None:
    """glibc's defaults: what the plain loop would run with."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    mallopt(-4, 65_536)  # M_MMAP_MAX
    mallopt(-1, 128 * 1024)  # M_TRIM_THRESHOLD


class Variant:
    """An arm and the settings of the process that belong to its turn."""

    def __init__(self, arm: Arm, *, keep_memory: bool, onednn: bool) -> None:
        self.arm = arm
        self.keep_memory = keep_memory
        self.onednn = onednn
        self.seconds: list[float] = []

    def take_turn(self, idx: Tensor, targets: Tensor) -> None:
        if self.keep_memory:
            keep_freed_memory()
        else:
            give_freed_memory_back()
        original = linear._cpu_prefers_onednn
        if not self.onednn:
            linear._cpu_prefers_onednn = lambda: False
        try:
            self.arm.step(idx, targets)
            start = time.perf_counter()
            for _ in range(COUNTED_STEPS):
                self.arm.step(idx, targets)
            self.seconds.append((time.perf_counter() - start) / COUNTED_STEPS)
        finally:
            linear._cpu_prefers_onednn = original


def variants(size: Size, precision: str, compiled: bool, folder: Path) -> dict[str, Variant]:
    """The arms of one size and precision. `trainer` is the product; `ours` its modules without loop and telemetry."""
    ours = OurModules(size, precision)
    chunk_rows = size.micro_batch_size * size.train_seq_len // 2
    arms = {
        "plain": Variant(
            PlainLoop(size, resolve_precision(precision, CPU).autocast_dtype), keep_memory=False, onednn=False
        ),
        "trainer": Variant(Trainer(size, precision, folder), keep_memory=True, onednn=True),
        "ours": Variant(ours, keep_memory=True, onednn=True),
        "ours, torch's own products and allocator": Variant(ours, keep_memory=False, onednn=False),
        "ours, torch's own products": Variant(ours, keep_memory=True, onednn=False),
        "ours, chunked loss, 1 chunk": Variant(
            OurModules(size, precision, chunk_rows=2 * chunk_rows), keep_memory=True, onednn=True
        ),
        "ours, chunked loss, 2 chunks": Variant(
            OurModules(size, precision, chunk_rows=chunk_rows), keep_memory=True, onednn=True
        ),
    }
    if compiled:
        arms["ours, compiled"] = Variant(OurModules(size, precision, compiled=True), keep_memory=True, onednn=False)
    return arms


def measure(size: Size, precision: str, rounds: int, compiled: bool, folder: Path) -> dict[str, Any]:
    """All arms in turns, `rounds` times after one round that is not counted."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size.vocab_size, (size.micro_batch_size, size.train_seq_len + 1), generator=generator)
    idx, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    arms = variants(size, precision, compiled, folder)
    for _ in range(rounds + 1):
        for variant in arms.values():
            variant.take_turn(idx, targets)
    plain = arms["plain"].seconds[1:]
    return {
        name: summary(variant.seconds[1:])
        | {"speed_against_plain": statistics.median(p / s for p, s in zip(plain, variant.seconds[1:], strict=True))}
        for name, variant in arms.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="step time against a plain loop")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (needs a C++ compiler)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.sizes.split(","):
        result: dict[str, Any] = {"size": SIZES[name]._asdict(), "precisions": {}}
        for precision in arguments.precisions.split(","):
            before = torch_environment(arguments.threads)
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(SIZES[name], precision, arguments.rounds, arguments.compile, Path(folder))
            after = torch_environment(arguments.threads)["load_average_1min"]
            result["precisions"][precision] = {
                "environment": before | {"load_average_1min_at_end": after},
                "arms": rows,
            }
            for arm, row in rows.items():
                print(
                    f"{name:15} {precision}  {arm:42} {row['median_s'] * 1e3:8.1f} ms (best {row['min_s'] * 1e3:.1f})"
                    f"  {row['speed_against_plain']:.2f}x plain",
                    flush=True,
                )
            print(write_result(f"step_time_{name}", result), flush=True)


if __name__ == "__main__":
    main()
