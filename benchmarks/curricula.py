"""Does it help to begin with short sequences or small batches? Validation loss at equal tokens and at equal time.

    python -m benchmarks.curricula [--seeds 3] [--tokens 524288] [--threads 2] [--markdown]

A small GPT-2 on the standard library's text, one trainer process a run. For every seed each arm trains on the same
number of tokens; then every curriculum trains again on as many tokens as it gets through in the plain run's training
time (the step times of that seed's runs; validation and start-up left out). The learning rate's schedule ends with each
run. Differences are paired by seed: arm minus plain, below 0 is better. All runs take turns, seed by seed.
Stored as benchmarks/results/curricula.json; `--markdown` prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._record import RESULTS, torch_environment, write_result
from gpuworkbench.config.curriculum import Curriculum
from gpuworkbench.config.loader import Override
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.launch.create import LaunchRequest, create

WARMUP_SHARE = 0.3  # of a run's tokens
MODEL = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_embd": 128,
    "model.seq_len": 128,
    "data.tokenizer": "bpe-2048",
    "train.micro_batch_size": 8,
    "train.grad_accum_steps": 2,
    "train.log_interval_steps": 1,
    "optimizer.lr": 3e-3,
    "schedule.warmup_steps": 20,
    "checkpoint.interval_steps": 0,
    "sample.interval_steps": 0,
    "eval.interval_steps": 10**9,
    "eval.tokens": 65_536,
}
FULL_STEP_TOKENS = 8 * 2 * 128
ARMS = ("plain", "sequence length", "batch", "both")


def keys_of(arm: str, tokens: int) -> dict[str, Any]:
    """The curriculum of an arm for a run of `tokens`."""
    warmup = int(WARMUP_SHARE * tokens)
    length = {"schedule.seq_len_start": 16, "schedule.seq_len_warmup_tokens": warmup}
    batch = {"schedule.batch_start_sequences": 4, "schedule.batch_warmup_tokens": warmup}
    batch["schedule.batch_lr_scaling"] = "sqrt"  # type: ignore[assignment]
    chosen = {"plain": {}, "sequence length": length, "batch": batch, "both": {**length, **batch}}
    return dict(chosen[arm])


def train(arm: str, tokens: int, seed: int, threads: int, folder: Path) -> dict[str, Any]:
    """One run to its end: validation loss, tokens, steps and seconds of training."""
    keys = {**MODEL, **keys_of(arm, tokens), "train.seed": seed, "train.threads": threads}
    keys["schedule.warmdown_steps"] = tokens // FULL_STEP_TOKENS // 2
    sets = tuple(Override(key, value, "benchmark") for key, value in keys.items())
    config = configure(load_preset("quickstart"), sets=sets, environ={}, steps=1)
    steps = Curriculum.of(config).steps_for(tokens)
    run_id = f"{arm.replace(' ', '-')}-{seed}"
    paths = create(
        LaunchRequest(preset="quickstart", runs_dir=folder, sets=sets, steps=steps, run_id=run_id, environ={})
    )
    command = [sys.executable, "-m", "gpuworkbench.training", str(paths.root)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=dict(os.environ))
    events = [msgspec.json.decode(line) for line in paths.events.read_bytes().splitlines()]
    done = [event for event in events if event["type"] == "step"]
    (validation,) = (event for event in events if event["type"] == "eval")
    return {
        "val_loss": validation["loss"],
        "tokens": done[-1]["tokens_seen"],
        "steps": len(done),
        "train_s": sum(event["step_time_s"] for event in done),
        "grad_norm_max_after_warmup": max(event["grad_norm"] for event in done[len(done) // 10 :]),
    }


def measure(seeds: int, tokens: int, threads: int, folder: Path) -> list[dict[str, Any]]:
    """Every run, with its arm, seed and what it has in common with the plain run."""
    runs = []
    for seed in range(seeds):
        equal = {arm: train(arm, tokens, seed, threads, folder) for arm in ARMS}
        runs += [{"arm": arm, "seed": seed, "equal": "tokens", **run} for arm, run in equal.items()]
        for arm in ARMS[1:]:
            share = equal["plain"]["train_s"] / equal[arm]["train_s"]
            matched = round(tokens * share / FULL_STEP_TOKENS) * FULL_STEP_TOKENS
            runs.append(
                {"arm": arm, "seed": seed, "equal": "time", **train(arm, matched, seed, threads, folder, "time")}
            )
    return runs


def compared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means of each arm, and its differences from the plain run of the same seed."""
    plain = {run["seed"]: run for run in runs if run["arm"] == "plain"}
    rows = []
    for equal in ("tokens", "time"):
        for arm in ARMS if equal == "tokens" else ARMS[1:]:
            own = [run for run in runs if run["arm"] == arm and run["equal"] == equal]
            differences = [run["val_loss"] - plain[run["seed"]]["val_loss"] for run in own]
            rows.append(
                {
                    "equal": equal,
                    "arm": arm,
                    "val_loss_mean": statistics.mean(run["val_loss"] for run in own),
                    "differences": differences,
                    "difference_mean": statistics.mean(differences),
                    "difference_std": statistics.stdev(differences) if len(differences) > 1 else None,
                    "tokens_mean": statistics.mean(run["tokens"] for run in own),
                    "time_against_plain": statistics.median(
                        run["train_s"] / plain[run["seed"]]["train_s"] for run in own
                    ),
                }
            )
    return rows


def markdown(result: dict[str, Any]) -> Iterable[str]:
    """The table of docs/curricula.md."""
    yield "| equal | curriculum | tokens | time / plain | val loss | minus plain, by seed |"
    yield "|---|---|---:|---:|---:|---|"
    for row in result["arms"]:
        differences = ", ".join(f"{difference:+.3f}" for difference in row["differences"])
        yield (
            f"| {row['equal']} | {row['arm']} | {row['tokens_mean'] / 1e6:.2f} M | {row['time_against_plain']:.2f} "
            f"| {row['val_loss_mean']:.3f} | {differences if row['arm'] != 'plain' else ''} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256 * FULL_STEP_TOKENS, help="of every run that is not matched")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", action="store_true", help="print the stored result as a table, measure nothing")
    arguments = parser.parse_args()
    if not arguments.markdown:
        settings = {"model": MODEL, "seeds": arguments.seeds, "tokens": arguments.tokens, "warmup_share": WARMUP_SHARE}
        environment = torch_environment(arguments.threads)
        with tempfile.TemporaryDirectory() as folder:
            runs = measure(arguments.seeds, arguments.tokens, arguments.threads, Path(folder))
        result = {"environment": environment, "settings": settings, "runs": runs, "arms": compared(runs)}
        print(write_result("curricula", result))
    print("\n".join(markdown(json.loads((RESULTS / "curricula.json").read_text()))))


if __name__ == "__main__":
    main()
