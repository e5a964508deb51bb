"""Tokens a second and MFU of the two sizes that the documentation speaks of, and what torch.compile brings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.common import Place, Skipped, attempted, new_run, speed, timed_steps, wait_for_card
from gpuworkbench.errors import DoesNotFitError, WorkbenchError
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.memory_errors import is_out_of_memory
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.units import GIB, format_bytes

SMALL_PRESET = "rtx4090_gpt2_small"
SMALL_LIMIT_BYTES = 6 * GIB  # 16 x 1024 of GPT-2 small


def gpt2_small(place: Place) -> dict[str, Any]:
    """124M, 16 x 1024, bf16: tok/s, MFU, the peak against 6 GiB; eager, then compiled."""
    result = _eager_and_compiled(place, "small", SMALL_PRESET, micro_batches=(16, 8, 4, 2, 1), counted=12)
    best = result["compiled"]
    is_whole = best["micro_batch_size"] == 16
    return {**result, "is_within_6_gib": best["peak_bytes"] <= SMALL_LIMIT_BYTES if is_whole else None}


def flagship(place: Place) -> dict[str, Any]:
    """985M as its preset keeps it in memory, on all of the card: tok/s and MFU; eager, then compiled."""
    return _eager_and_compiled(place, "1b", "rtx5080_1b", micro_batches=(8, 4, 2, 1), counted=5)


def _eager_and_compiled(
    place: Place, name: str, preset: str, *, micro_batches: Sequence[int], counted: int
) -> dict[str, Any]:
    """The largest micro-batch that fits, the same for both; what is known is noted before compiling begins."""
    result: dict[str, Any] = {}
    for micro_batch in micro_batches:
        options = {"micro_batch": micro_batch, "counted": counted}
        try:
            result["eager"] = _measured(place, f"eager-{micro_batch}-{name}", preset, compile_mode="off", **options)
            break
        except (RuntimeError, MemoryError, WorkbenchError) as error:
            if not is_out_of_memory(error) and not isinstance(error, DoesNotFitError):
                raise
    if not result:
        raise Skipped("not even one sequence fits")
    place.note({**result, "headline": f"eager {_words(result['eager'])}"})
    mode = "default" if place.is_cuda else "off"
    result["compiled"] = _measured(place, f"compiled-{name}", preset, compile_mode=mode, **options)
    ratio = result["eager"]["step_s"] / result["compiled"]["step_s"]
    first = result["compiled"]["first_step_s"]
    said = f"{_words(result['compiled'])}; {ratio:.2f}x eager, first step {first:.0f} s"
    return {**result, "compile_ratio": ratio, "headline": said}


def _measured(
    place: Place, name: str, preset: str, *, micro_batch: int, compile_mode: str, counted: int
) -> dict[str, Any]:
    sets = {"train.micro_batch_size": micro_batch, "train.grad_accum_steps": 4, "device.compile": compile_mode}
    sets |= {"train.log_interval_steps": 10, "train.mode": "fast", "hybrid.enabled": False}  # true steps alone
    paths = new_run(place, name, preset, sets, steps=1000)
    return attempted(paths, lambda run: _timed(place, run, counted if not place.is_small else 2))


def _timed(place: Place, run: TrainingRun, counted: int) -> dict[str, Any]:
    started = time.perf_counter()
    train_one_step(run)
    wait_for_card(place)
    first_step_s = time.perf_counter() - started
    train_one_step(run)  # makes the kernels for gradients that are None at first, and the optimizer's state
    if place.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    timing = timed_steps(place, run, warm=1, counted=counted)
    return {
        **timing,
        **speed(run, timing["step_s"]),
        "first_step_s": first_step_s,
        "n_params": run.config.model.n_params(),
        "peak_bytes": torch.cuda.max_memory_allocated() if place.is_cuda else 0,
        "strategies": [strategy.name for strategy in run.strategies],
        "compile": run.config.device.compile,
        "micro_batch_size": run.config.train.micro_batch_size,
    }


def _words(result: dict[str, Any]) -> str:
    mfu = "MFU n/a" if result["mfu"] is None else f"{result['mfu']:.1%} MFU"
    size = f"{result['micro_batch_size']} sequences at a time"
    return f"{result['tokens_per_s']:,.0f} tok/s, {mfu}, peak {format_bytes(result['peak_bytes'])}, {size}"
