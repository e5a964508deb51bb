"""What small optimizer state costs: validation loss against fp32 AdamW, step time, bytes a parameter from the tensors.

Every arm trains the same small GPT-2 on the quickstart preset's text with the same seeds, rate and schedule; only
[memory] differs. torchao's and bitsandbytes' 8-bit AdamW are arms where they are installed. A finished run is kept in
the result file, so a benchmark that was stopped goes on.

    python -m benchmarks.packed_adamw [--steps N] [--seeds N] [--threads N] [--arms A B] [--cuda] [--markdown]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from benchmarks._record import RESULTS, torch_environment, write_result
from benchmarks.optimizers import prepared
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import PreparedData
from gpuworkbench.training.loop import run_validation, train_one_step
from gpuworkbench.training.optimizer_state import optimizer_state_by_name
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.trial import scratch_run

MODEL = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 64,
    "model.seq_len": 64,
    "data.tokenizer": "bpe-1024",
    "train.micro_batch_size": 8,
    "eval.tokens": 8_192,
    "schedule.name": "cosine",
    "schedule.min_lr_fraction": 0.1,
    "schedule.warmdown_steps": 0,
    "optimizer.lr": 3e-3,
    "hybrid.enabled": False,  # a jump that one arm keeps and another undoes would be a difference of its own
}
BF16 = {"memory.weights": "bf16"}
ARMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, bf16 products": {"memory.precision": "bf16"},
    "bf16, to nearest": BF16,
    "bf16, stochastic": {**BF16, "memory.stochastic_rounding": True},
    "packed": {**BF16, "memory.packed_optimizer": True},
    "streamed, fp32 masters": {**BF16, "memory.optimizer_offload": "streamed"},
}


def torchao_adamw(run: TrainingRun) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit  # heavy, and an extra

    optimizer = AdamW8bit(run.optimizer.param_groups, bf16_stochastic_round=run.config.memory.weights == "bf16")
    optimizer.register_step_pre_hook(rates_as_tensors)
    return optimizer


def rates_as_tensors(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """The schedule sets floats, and torchao compiles its step for tensors."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"])


def bitsandbytes_adamw(run: TrainingRun) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # heavy, and an extra

    return AdamW8bit(run.optimizer.param_groups)


OTHERS: dict[str, tuple[str, dict[str, Any], Callable[[TrainingRun], torch.optim.Optimizer]]] = {
    "torchao AdamW8bit, fp32 weights": ("torchao", {}, torchao_adamw),
    "torchao AdamW8bit, bf16 stochastic": ("torchao", BF16, torchao_adamw),
    "bitsandbytes AdamW8bit, fp32 weights": ("bitsandbytes", {}, bitsandbytes_adamw),
}


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def arms() -> dict[str, tuple[dict[str, Any], Callable[[TrainingRun], torch.optim.Optimizer] | None]]:
    own: dict[str, Any] = {name: (sets, None) for name, sets in ARMS.items()}
    return own | {name: (sets, make) for name, (package, sets, make) in OTHERS.items() if installed(package)}


def trained(
    config: RunConfig, data: PreparedData, seed: int, make: Callable[[TrainingRun], torch.optim.Optimizer] | None
) -> dict[str, Any]:
    """One training: validation loss, bytes a parameter by what holds them, seconds a step and of its update."""
    replace = msgspec.structs.replace
    config = replace(config, train=replace(config.train, seed=seed))
    with scratch_run(config, data) as (run, _):
        if make is not None:
            run.optimizer = make(run)
            run.weights = type(run.weights)()
        seconds: list[float] = []
        updates: list[float] = []
        time_updates(run, updates)
        while run.progress.step < run.max_steps:
            started = time.perf_counter()
            if train_one_step(run) is not None:
                raise SystemExit(f"diverged at step {run.progress.step}")
            seconds.append(time.perf_counter() - started)
        run.telemetry.flush()
        run_validation(run)
        return {
            "val_loss": run.progress.best_val_loss,
            "step_s": statistics.median(seconds),
            "update_s": statistics.median(updates),
            "bytes": bytes_per_parameter(run, is_ours=make is None),
        }


def time_updates(run: TrainingRun, updates: list[float]) -> None:
    step = type(run.optimizer).step.__get__(run.optimizer)

    def timed(*positional: Any, **named: Any) -> Any:
        started = clock()
        result = step(*positional, **named)
        updates.append(clock() - started)
        return result

    run.optimizer.step = timed  # type: ignore[method-assign]


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def bytes_per_parameter(run: TrainingRun, *, is_ours: bool) -> dict[str, float]:
    """From the tensors that are there; a gradient has its parameter's type, fp32 where that is asked for."""
    parameters = list(run.model.parameters())
    n = sum(p.numel() for p in parameters)
    gradients = sum(p.numel() * getattr(p, "grad_dtype", p.dtype).itemsize for p in parameters)
    found = {"weights": sum(p.nbytes for p in parameters) / n, "gradients": gradients / n}
    if is_ours:
        state = {k: t for k, t in optimizer_state_by_name(run.model, run.optimizer).items() if t.dim()}
        is_on_host = run.config.memory.optimizer_offload == "streamed"
        found["host state" if is_on_host else "state"] = sum(t.nbytes for t in state.values()) / n
    return found


def table(result: dict[str, Any]) -> str:
    """The stored result as Markdown."""
    environment, setting = result["environment"], result["setting"]
    where = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} thread(s)"
    lines = [
        f"Measured on {where}, torch {environment['packages']['torch']}: {setting['n_params']:,} parameters, "
        f"{setting['steps']} steps of {setting['tokens_per_step']} tokens, at most {setting['seeds']} seeds.",
        "",
        "| storage | validation loss | against fp32 (each seed) | bytes a parameter |",
        "|---|---|---|---|",
    ]
    base = result["arms"]["fp32"]
    for name, runs in result["arms"].items():
        seeds = sorted(set(runs) & set(base))
        if not seeds:
            continue
        losses = [runs[seed]["val_loss"] for seed in seeds]
        ratios = [runs[seed]["val_loss"] / base[seed]["val_loss"] - 1 for seed in seeds]
        each = ", ".join(f"{100 * ratio:+.2f}" for ratio in ratios)
        first = runs[seeds[0]]["bytes"]
        held = " + ".join(f"{value:.2f} {what}" for what, value in first.items())
        mean = f"{100 * statistics.mean(ratios):+.2f} % ({each})"
        lines.append(f"| {name} | {statistics.mean(losses):.4f} | {mean} | {held} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(arms()), choices=list(arms()), help="only these, for now")
    parser.add_argument("--cuda", action="store_true", help="on the first card")
    parser.add_argument("--markdown", action="store_true", help="print the stored result, measure nothing")
    arguments = parser.parse_args()
    name = "packed_adamw_cuda" if arguments.cuda else "packed_adamw"
    path = RESULTS / f"{name}.json"
    if arguments.markdown:
        print(table(json.loads(path.read_text())))
        return
    sets = {**MODEL, "schedule.warmup_steps": arguments.steps // 10}
    setups = {arm: prepared("adamw", {**sets, **own}, arguments, arguments.steps) for arm, (own, _) in arms().items()}
    config = setups["fp32"][0]
    setting = {
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "n_params": config.model.n_params(),
        "tokens_per_step": config.tokens_per_step,
        "lr": config.optimizer.lr,
        "not_installed": sorted({package for package, _, _ in OTHERS.values() if not installed(package)}),
    }
    stored = json.loads(path.read_text()) if path.exists() else {}
    done: dict[str, dict[str, Any]] = stored["arms"] if stored.get("setting") == setting else {}
    for seed in range(1, arguments.seeds + 1):
        for arm in arguments.arms:
            make = arms()[arm][1]
            runs = done.setdefault(arm, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = trained(*setups[arm], seed, make)
            print(f"seed {seed}, {arm}: {runs[str(seed)]}", flush=True)
            write_result(name, {"environment": torch_environment(arguments.threads), "setting": setting, "arms": done})
    print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
