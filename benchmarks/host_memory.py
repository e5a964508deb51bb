"""Host memory of real CPU runs against what the planner says before they start: without and with calibration.

    python -m benchmarks.host_memory [--steps 60] [--runs DIR]
    python -m benchmarks.host_memory --markdown

Each case is a run of the real command with its validations, samples, checkpoints and jumps, one thread; its records are
kept from the machine's own. A run in --runs that is finished is not made again. `calibrated`: corrected by the other
cases, as finished runs on this machine would. The planner's constants for the process and its heap come from these
runs, but for those held out. Stored as benchmarks/results/host_memory.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._record import write_result
from benchmarks.real_runs import Case, figures, finished, run_comparison, surroundings
from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import storage_of
from gpuworkbench.config.toml_io import parse_toml
from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.plan.calibration import Record, calibrate

NAME = "host_memory"
LONG = "quickstart, 27M parameters, 32 x 128 tokens, no prediction"  # half a minute a step: 6 of them
TWIN = ("--cpu-twin",)
COMMON = {
    "train.threads": 1,
    "checkpoint.interval_steps": 20,
    "eval.interval_steps": 20,
    "sample.interval_steps": 30,
}
OFF = {"hybrid.enabled": False}
IN_MEMORY = {"hybrid.undo_storage": "memory", "checkpoint.in_background": True}
LARGER = {"model.n_embd": 384, "model.n_layer": 6, "model.n_head": 6}
LARGE = {
    "train.threads": 1,
    "hybrid.enabled": False,
    "model.n_embd": 512,
    "model.n_layer": 8,
    "model.n_head": 8,
    "train.micro_batch_size": 32,
    "checkpoint.interval_steps": 3,
    "eval.interval_steps": 3,
    "eval.tokens": 8192,
    "eval.micro_batch_size": 32,
    "train.log_interval_steps": 1,
}
CASES = {
    "quickstart": Case("quickstart", COMMON),
    "quickstart, no prediction": Case("quickstart", {**COMMON, **OFF}),
    "quickstart, undo on disk": Case("quickstart", {**COMMON, "hybrid.undo_storage": "disk"}),
    "quickstart, streamed state": Case("quickstart", {**COMMON, **OFF, "memory.optimizer_offload": "streamed"}),
    "quickstart, 12M parameters": Case("quickstart", {**COMMON, **LARGER}),
    "quickstart, 12M parameters, no copy for checkpoints": Case(
        "quickstart", {**COMMON, **LARGER, "checkpoint.in_background": False}
    ),
    "quickstart, packed, no prediction": Case(
        "quickstart", {**COMMON, **OFF, "memory.weights": "bf16", "memory.packed_optimizer": True}
    ),
    "rtx5080_gpt2_small_memory, twin": Case("rtx5080_gpt2_small_memory", COMMON, TWIN),
    "rtx5080_1b, twin": Case("rtx5080_1b", COMMON, TWIN),
    "rtx5080_1b_tight, twin": Case("rtx5080_1b_tight", COMMON, TWIN),
    "rtx5080_1b_exact, twin": Case("rtx5080_1b_exact", COMMON, TWIN),
    "rtx5080_1b_exact, twin, undo and checkpoints' copy in memory": Case(
        "rtx5080_1b_exact", {**COMMON, **IN_MEMORY}, TWIN
    ),
    LONG: Case("quickstart", LARGE),
    "rtx5080_gpt2_medium, twin": Case("rtx5080_gpt2_medium", COMMON, TWIN),
    "rtx4090_gpt2_small, twin": Case("rtx4090_gpt2_small", COMMON, TWIN),
    "quickstart, 4 x 4 sequences, blocks recomputed, chunked loss (held out)": Case(
        "quickstart",
        {
            **COMMON,
            "train.micro_batch_size": 4,
            "train.grad_accum_steps": 4,
            "memory.activation_checkpointing": "all",
            "memory.chunked_cross_entropy": True,
        },
    ),
    "rtx5080_gpt2_small_hybrid, twin (held out)": Case("rtx5080_gpt2_small_hybrid", COMMON, TWIN),
    "quickstart, 16 x 64 tokens, bf16 products (held out)": Case(
        "quickstart",
        {**COMMON, "train.seq_len": 64, "train.micro_batch_size": 16, "memory.precision": "bf16"},
    ),
}


def main() -> None:
    run_comparison(__doc__.splitlines()[0], NAME, measure, table)


def measure(runs: Path, steps: int) -> None:
    """Make the runs and store what they took beside what was predicted."""
    found, configs = {}, {}
    with ThreadPoolExecutor(2) as pool:
        logs = list(
            pool.map(
                lambda each: finished(CASES[each[1]], runs / f"host-{each[0]}", 6 if each[1] == LONG else steps),
                enumerate(CASES),
            )
        )
    for number, (name, events) in enumerate(zip(CASES, logs, strict=True)):
        run, measured = runs / f"host-{number}", figures(events)
        path = run / "run.toml"
        configs[name] = build(parse_toml(path.read_bytes(), str(path)), str(path))
        predicted = estimate(configs[name], kind="cpu")
        assert predicted is not None
        found[name] = {
            "n_params": measured["n_params"],
            "jumps": measured["accepted"] + measured["rejected"],
            "measured_bytes": measured["host_peak_bytes"],
            "predicted_bytes": predicted.host_bytes,
            "error": round(predicted.host_bytes / measured["host_peak_bytes"] - 1, 4),
        }
    records = {name: record(configs[name], each) for name, each in found.items()}
    for name, each in found.items():
        factor = factor_of_others(name, configs[name], records)
        each["calibrated_error"] = round(each["predicted_bytes"] * factor / each["measured_bytes"] - 1, 4)
    write_result(NAME, {"environment": surroundings(), "steps": steps, "runs": found})


def record(config: RunConfig, figure: Mapping[str, Any]) -> Record:
    """The line that the run left for later plans."""
    return Record(
        time_unix_s=0.0,
        kind="cpu",
        device=cpu_name() or "",
        preset=config.label,
        storage=storage_of(config.memory),
        n_params=figure["n_params"],
        predicted_bytes=figure["predicted_bytes"],
        measured_bytes=figure["measured_bytes"],
    )


def factor_of_others(name: str, config: RunConfig, records: Mapping[str, Record]) -> float:
    """What a plan is multiplied by once all the other cases have run."""
    learnt = calibrate(config, "cpu", cpu_name() or "", [each for key, each in records.items() if key != name])
    return 1.0 if learnt is None else learnt.factor


def table(result: Mapping[str, Any]) -> list[str]:
    """Markdown."""
    lines = [
        "| run | parameters | jumps | measured | planned | off by | calibrated |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in result["runs"].items():
        sizes = f"{run['measured_bytes'] / 2**20:,.0f} MiB | {run['predicted_bytes'] / 2**20:,.0f} MiB"
        errors = f"{run['error']:+.1%} | {run['calibrated_error']:+.1%}"
        lines.append(f"| {name} | {run['n_params'] / 1e6:.1f}M | {run['jumps']} | {sizes} | {errors} |")
    return lines


if __name__ == "__main__":
    main()
