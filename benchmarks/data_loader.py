"""Is the data loader ever the bottleneck, and does a resume cost the same at step 1,000,000 as at step 1?

    python -m benchmarks.data_loader [--rounds 15] [--threads 2] [--markdown]

Loader: the micro-batches of one optimizer step, from memory-mapped shards to tensors on the device, at positions all
over the data. Its share is of the real trainer's step on this machine; 8 x 1024 tokens are compared with the shortest
step that a card could take: all the step's FLOPs at ASSUMED_TFLOPS, which no card of the presets reaches. The first
stage of a curriculum, an eighth of the tokens, is compared with an eighth of that time, which is less than it takes.
All arms take turns. Stored as benchmarks/results/data_loader.json; `--markdown` prints the table of the docs from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._record import RESULTS, summary, torch_environment, write_result
from benchmarks.plain_loop import Size
from benchmarks.step_time import SIZES, Trainer
from gpuworkbench.config.curriculum import Curriculum
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.loader import Override
from gpuworkbench.config.schema import RunConfig, ScheduleConfig, TrainConfig
from gpuworkbench.data import TokenArray
from gpuworkbench.data.shards.shard_file import UINT16, UINT32, ShardWriter, Variant, map_shard
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.launch.create import LaunchRequest, create
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import open_run
from gpuworkbench.training.batches import TrainBatches
from gpuworkbench.training.controls import Signals
from gpuworkbench.training.loop import save_checkpoint, train_one_step

ASSUMED_TFLOPS = 200.0  # GeForce RTX 4090: 165 in bf16 with fp32 accumulation, dense, by its data sheet
CARD_SIZE = Size(12, 12, 768, 50304, 1024, 8, 1024)
N_SHARDS, SHARD_TOKENS = 8, 2_000_000
STAGES = ("full size", "shorter sequences", "smaller batch")
LATE_STEP = 1_000_000


def write_shards(folder: Path, variant: Variant) -> TokenArray:
    """Random tokens as memory-mapped shards."""
    rng = np.random.default_rng(0)
    parts = []
    for number in range(N_SHARDS):
        path = folder / f"{variant.dtype[1:]}-train-{number}.bin"
        with ShardWriter(path, variant) as writer:
            writer.append(rng.integers(0, 50_257, SHARD_TOKENS, dtype=np.int64))
            writer.finish()
        parts.append(map_shard(path))
    return TokenArray(parts)


def schedule(size: Size, stage: str) -> ScheduleConfig:
    """A curriculum that stays in its first stage, an eighth of the full size (a quarter where the batch is 4)."""
    if stage == "shorter sequences":
        return ScheduleConfig(seq_len_start=size.train_seq_len // 8, seq_len_warmup_tokens=10**12)
    if stage == "smaller batch":
        return ScheduleConfig(batch_start_sequences=max(size.micro_batch_size // 8, 1), batch_warmup_tokens=10**12)
    return ScheduleConfig()


class Loader:
    """Loads the next step's micro-batches at each call, from window `position` on."""

    def __init__(self, tokens: TokenArray, size: Size, stage: str, position: int, device: torch.device) -> None:
        config = RunConfig(
            schema_version=1,
            model=Gpt2Config(seq_len=size.seq_len),
            train=TrainConfig(seq_len=size.train_seq_len, micro_batch_size=size.micro_batch_size),
            schedule=schedule(size, stage),
        )
        self.curriculum = Curriculum.of(config)
        self.batches = TrainBatches(tokens, size.train_seq_len, 0, size.micro_batch_size, device)
        self.seen, self.position = 0, position
        first, last = self.curriculum.stages[0], self.curriculum.stages[-1]
        self.share_of_tokens = first.tokens_per_step / last.tokens_per_step

    def __call__(self) -> None:
        place = self.curriculum.place(self.seen)
        for _ in self.batches.of_step(self.position, place):
            pass
        self.seen += place.stage.tokens_per_step
        self.position += place.stage.sequences if place.ends_group else 0


def take_turns(arms: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds a call of each arm, round by round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, call in arms.items():
            started = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[name].append((time.perf_counter() - started) / calls)
    return {name: values[1:] for name, values in seconds.items()}


def measure_shares(rounds: int, device: torch.device, folder: Path) -> list[dict[str, Any]]:
    """Loader and step, for every size, token type and kind of step."""
    arrays = {"uint16": write_shards(folder, UINT16), "uint32": write_shards(folder, UINT32)}
    arms: dict[str, Callable[[], object]] = {}
    rows: list[dict[str, Any]] = []
    for name, size in {**SIZES, "gpt2_small 8x1024": CARD_SIZE}.items():
        for dtype, tokens in arrays.items():
            for stage in STAGES:
                load = Loader(tokens, size, stage, 0, device)
                arms[f"{name} {dtype} {stage}"] = load
                row = {"size": name, "tokens": dtype, "steps": stage, "share_of_tokens": load.share_of_tokens}
                rows.append(row)
    loads = take_turns(arms, rounds, 20)
    steps = {name: measured_step(size, max(rounds // 3, 3), folder / name) for name, size in SIZES.items()}
    model = Gpt2Config(n_layer=12, n_head=12, n_embd=768, vocab_size=50_304, seq_len=1024)
    flops = model.flops_per_token(1024) * 8 * 1024
    steps["gpt2_small 8x1024"] = {"full_step_s": flops / (ASSUMED_TFLOPS * 1e12), "step_is": "computed"}
    for row in rows:
        row |= {"loader": summary(loads[f"{row['size']} {row['tokens']} {row['steps']}"]), **steps[row["size"]]}
        row["step_s"] = row["full_step_s"] * row["share_of_tokens"]
        row["share"] = row["loader"]["median_s"] / row["step_s"]
    return rows


def measured_step(size: Size, rounds: int, folder: Path) -> dict[str, Any]:
    """The real trainer's step."""
    trainer, nothing = Trainer(size, "fp32", folder), torch.empty(0)
    (seconds,) = take_turns({"step": partial(trainer.step, nothing, nothing)}, rounds, 1).values()
    trainer.run.heartbeat.stop()
    trainer.run.events.close()
    return {"full_step_s": statistics.median(seconds), "step_is": "measured"}


def measure_positions(rounds: int, device: torch.device, folder: Path) -> dict[str, Any]:
    """A batch at step 1 and at step LATE_STEP."""
    tokens, size = write_shards(folder, UINT16), SIZES["quickstart"]
    arms: dict[str, Callable[[], object]] = {
        str(step): Loader(tokens, size, STAGES[0], (step - 1) * size.micro_batch_size, device)
        for step in (1, LATE_STEP)
    }
    return compared(take_turns(arms, rounds, 50))


def saved_at(folder: Path, step: int) -> RunPaths:
    """A small run whose only checkpoint is of `step`."""
    keys = {"data.source": "synthetic", "data.tokenizer": "byte", "model.n_embd": 64, "train.max_steps": 2 * LATE_STEP}
    sets = tuple(Override(key, value, "benchmark") for key, value in {**keys, "eval.interval_steps": 0}.items())
    paths = create(LaunchRequest(preset="quickstart", runs_dir=folder, sets=sets, run_id=f"at-{step}", environ={}))
    run = open_run(paths, EventWriter(paths.events, attempt=1), HeartbeatWriter(paths.heartbeat), Signals())
    run.progress.step = step
    run.progress.sequences_seen = step * run.config.train.micro_batch_size
    run.progress.tokens_seen = step * run.config.tokens_per_step
    save_checkpoint(run, wait=True)
    run.events.close()
    return paths


def resume(paths: RunPaths, attempt: int) -> None:
    """From nothing to the end of the first step after the checkpoint."""
    run = open_run(paths, EventWriter(paths.events, attempt=attempt), HeartbeatWriter(paths.heartbeat), Signals())
    train_one_step(run)
    run.events.close()


def measure_resumes(rounds: int, folder: Path) -> dict[str, Any]:
    """The start of a run that goes on at step 1 and of one at LATE_STEP."""
    arms: dict[str, Callable[[], object]] = {
        str(step): partial(resume, saved_at(folder, step), 2) for step in (1, LATE_STEP)
    }
    return compared(take_turns(arms, rounds, 1))


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Both arms, and the median ratio late / early of the rounds."""
    early, late = seconds["1"], seconds[str(LATE_STEP)]
    ratio = statistics.median(b / a for a, b in zip(early, late, strict=True))
    return {"step_1": summary(early), f"step_{LATE_STEP}": summary(late), "late_against_early": ratio}


def markdown(result: dict[str, Any]) -> Iterable[str]:
    """The table of docs/shards.md."""
    yield "| size | tokens | steps | loader, ms | step, ms | share |"
    yield "|---|---|---|---:|---:|---:|"
    for row in result["shares"]:
        step = f"{row['step_s'] * 1e3:.1f} {row['step_is']}"
        load = f"{row['loader']['median_s'] * 1e3:.2f}"
        yield f"| {row['size']} | {row['tokens']} | {row['steps']} | {load} | {step} | {row['share']:.2%} |"
    yield ""
    for name in ("batch", "resume"):
        yield f"{name} at step {LATE_STEP:,} against step 1: {result[name]['late_against_early']:.2f} times the seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", action="store_true", help="print the stored result as a table, measure nothing")
    arguments = parser.parse_args()
    if not arguments.markdown:
        torch.set_num_threads(arguments.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        result: dict[str, Any] = {"environment": torch_environment(arguments.threads), "device": str(device)}
        result["assumed_tflops"] = ASSUMED_TFLOPS
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            result["shares"] = measure_shares(arguments.rounds, device, folder)
            result["batch"] = measure_positions(arguments.rounds, device, folder)
            result["resume"] = measure_resumes(max(arguments.rounds // 3, 3), folder / "resumed")
        print(write_result("data_loader", result))
    print("\n".join(markdown(json.loads((RESULTS / "data_loader.json").read_text()))))


if __name__ == "__main__":
    main()
