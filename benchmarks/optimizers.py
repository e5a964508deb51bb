"""Each optimizer at its own tuned rate: validation loss, step time against AdamW's, bytes of state.

    python -m benchmarks.optimizers [--steps 150] [--seeds 3] [--rounds 8] [--threads 2] [--cuda]
    python -m benchmarks.optimizers --markdown      the stored result as the tables of docs/optimizers.md

The rate is found as `gpuworkbench bench lr` finds it, with one seed; the losses are of other seeds, so that no
optimizer profits from having been tuned on them. Step times are of the quickstart model, all optimizers taking turns
within one process. Stored as benchmarks/results/optimizers.json (optimizers_cuda.json).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks._record import RESULTS, summary, torch_environment, write_result
from gpuworkbench import registry
from gpuworkbench.commands.bench_lr import trial_config
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.loader import Override
from gpuworkbench.config.optimizers import optimizer_state_bytes, spec_of
from gpuworkbench.config.schema import OptimizerConfig, RunConfig
from gpuworkbench.data import PreparedData
from gpuworkbench.launch.create import LaunchRequest, check
from gpuworkbench.plan.lr_search import (
    RANGE_TEST_STEPS,
    RangeTest,
    SearchPlan,
    Trial,
    best_of,
    has_diverged,
    next_trials,
    range_test_lrs,
    summarize,
)
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.optimizer_state import optimizer_state_by_name
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.trial import range_trial, scratch_run, train_trial, with_rate

TUNING_SEED = 1
LOSS_MODEL = {
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_embd": 128,
    "model.seq_len": 64,
    "data.tokenizer": "bpe-2048",
    "train.micro_batch_size": 8,
    "eval.tokens": 32_768,
    "schedule.name": "cosine",
    "schedule.min_lr_fraction": 0.1,
}
STEPS_A_ROUND = 4


def prepared(
    name: str, sets: dict[str, Any], arguments: argparse.Namespace, steps: int
) -> tuple[RunConfig, PreparedData]:
    """The quickstart preset with another optimizer, as the trainer would get it."""
    values = {**sets, "optimizer.name": name, "train.threads": arguments.threads}
    if arguments.cuda:
        values["device.kind"] = "cuda"
    overrides = tuple(Override(key, value, "benchmark") for key, value in values.items())
    request = LaunchRequest(preset="quickstart", runs_dir=Path.cwd(), sets=overrides, environ={}, force=True)
    result = check(request)
    return trial_config(result.config, steps, set(values)), result.data


def tuned(name: str, config: RunConfig, data: PreparedData, steps: int) -> list[Trial]:
    """Every trial of the search for this optimizer's rate."""
    plan = SearchPlan(
        preset="quickstart",
        label=name,
        steps=steps,
        full_steps=steps,
        seeds=(TUNING_SEED,),
        lr_range=spec_of(name).lr_range,
        range_steps=min(RANGE_TEST_STEPS, steps),
    )
    lrs = range_test_lrs(plan)
    found = range_trial(config, data, lrs, has_diverged)
    test = RangeTest(lrs=tuple(lrs[: len(found.losses)]), losses=tuple(found.losses), seconds=found.seconds)
    trials: list[Trial] = []
    while todo := next_trials(plan, test, trials):
        trials.append(trial(config, data, *todo[0]))
    return trials


def trial(config: RunConfig, data: PreparedData, lr: float, seed: int) -> Trial:
    result = train_trial(with_rate(config, lr, seed), data)
    return Trial(
        lr=lr,
        seed=seed,
        losses=tuple(result.losses),
        val_loss=result.val_loss,
        diverged=result.diverged,
        seconds=result.seconds,
    )


def losses(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Tune each optimizer, then train each with every seed in turns."""
    sets = {**LOSS_MODEL, "schedule.warmup_steps": arguments.steps // 10, "schedule.warmdown_steps": 0}
    setups = {name: prepared(name, sets, arguments, arguments.steps) for name in registry.OPTIMIZERS}
    results: dict[str, dict[str, Any]] = {}
    for name, (config, data) in setups.items():
        trials = tuned(name, config, data, arguments.steps)
        best = best_of(trials)
        if best is None:
            raise SystemExit(f"{name}: every rate diverged")
        rates = [{"lr": rate.lr, "val_loss": rate.val_loss} for rate in summarize(trials)]
        results[name] = {"lr": best.lr, "searched": rates, "val_loss_by_seed": {}}
        print(f"{name}: lr {best.lr:g}, validation loss {best.val_loss:.4f} ({len(trials)} trials)", flush=True)
    for seed in range(TUNING_SEED + 1, TUNING_SEED + 1 + arguments.seeds):
        for name, (config, data) in setups.items():
            done = trial(config, data, results[name]["lr"], seed)
            results[name]["val_loss_by_seed"][str(seed)] = None if done.diverged else done.val_loss
    for result in results.values():
        values = [value for value in result["val_loss_by_seed"].values() if value is not None]
        complete = len(values) == arguments.seeds
        result["val_loss_mean"] = statistics.mean(values) if complete else None
        result["val_loss_spread"] = max(values) - min(values) if complete else None
    return results


def step_times(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds of a whole step and of the update alone, the optimizers taking turns; state in bytes a parameter."""
    seconds: dict[str, list[float]] = {name: [] for name in registry.OPTIMIZERS}
    updates: dict[str, list[float]] = {name: [] for name in registry.OPTIMIZERS}
    with ExitStack() as stack:
        runs = {}
        for name in registry.OPTIMIZERS:
            config, data = prepared(name, {}, arguments, 10_000)
            runs[name], _ = stack.enter_context(scratch_run(config, data))
        for number in range(arguments.rounds + 1):
            for name, run in runs.items():
                whole, update = turn(run)
                if number:  # the first round makes the state
                    seconds[name].append(whole)
                    updates[name].append(update)
        n_params = next(iter(runs.values())).config.model.n_allocated_params()
        num_bytes = {
            name: sum(t.nbytes for t in optimizer_state_by_name(run.model, run.optimizer).values())
            for name, run in runs.items()
        }
    small = Gpt2Config(vocab_size=50_257)
    adamw = seconds["adamw"]
    return {
        name: {
            "step": summary(seconds[name]),
            "update": summary(updates[name]),
            "step_time_against_adamw": statistics.median(a / b for a, b in zip(seconds[name], adamw, strict=True)),
            "state_bytes_per_parameter": num_bytes[name] / n_params,
            "state_bytes_per_parameter_gpt2_small": optimizer_state_bytes(
                OptimizerConfig(name=name), small.parameter_shapes()
            )
            / small.n_allocated_params(),
        }
        for name in registry.OPTIMIZERS
    }


def turn(run: TrainingRun) -> tuple[float, float]:
    """Seconds a step over a few steps, and those of them that the optimizer took."""
    update_s = 0.0
    step = type(run.optimizer).step.__get__(run.optimizer)

    def timed(*positional: Any, **named: Any) -> Any:
        nonlocal update_s
        started = synchronized_clock()
        result = step(*positional, **named)
        update_s += synchronized_clock() - started
        return result

    run.optimizer.step = timed  # type: ignore[method-assign]
    started = synchronized_clock()
    for _ in range(STEPS_A_ROUND):
        train_one_step(run)
    whole_s = synchronized_clock() - started
    return whole_s / STEPS_A_ROUND, update_s / STEPS_A_ROUND


def synchronized_clock() -> float:
    """Now, when the card has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def markdown(result: dict[str, Any]) -> str:
    """The stored result as a table."""
    environment, setting = result["environment"], result["setting"]
    where = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    n_seeds = setting["seeds"]
    lines = [
        f"Measured on {where}, torch {environment['packages']['torch']}: "
        f"{setting['steps']} steps, {n_seeds} seeds, {setting['n_params']:,} parameters "
        "(bytes of state: GPT-2 small).",
        "",
        "| optimizer | tuned lr | validation loss (spread) | step time against AdamW | state, bytes a parameter |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(result["losses"].items(), key=lambda item: item[1]["val_loss_mean"] or float("inf")):
        times = result["step_times"][name]
        mean, spread = row["val_loss_mean"], row["val_loss_spread"]
        loss = "diverged" if mean is None else f"{mean:.3f} ({spread:.3f})"
        lines.append(
            f"| {name} | {row['lr']:g} | {loss} | {times['step_time_against_adamw']:.2f}x "
            f"| {times['state_bytes_per_parameter_gpt2_small']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each optimizer when steps are timed")
    parser.add_argument("--cuda", action="store_true", help="on the first card")
    parser.add_argument("--markdown", action="store_true", help="print the stored result, measure nothing")
    arguments = parser.parse_args()
    name = "optimizers_cuda" if arguments.cuda else "optimizers"
    if arguments.markdown:
        print(markdown(json.loads((RESULTS / f"{name}.json").read_text())))
        return
    started = time.perf_counter()
    before = torch_environment(arguments.threads)
    times = step_times(arguments)
    rows = losses(arguments)
    config, _ = prepared("adamw", LOSS_MODEL, arguments, arguments.steps)
    result = {
        "environment": before | {"load_average_1min_at_end": torch_environment(arguments.threads)["load_average_1min"]},
        "setting": {
            "steps": arguments.steps,
            "seeds": arguments.seeds,
            "n_params": config.model.n_params(),
            "tokens_per_step": config.tokens_per_step,
            "seconds": time.perf_counter() - started,
        },
        "losses": rows,
        "step_times": times,
    }
    write_result(name, result)
    print(markdown(result))


if __name__ == "__main__":
    main()
