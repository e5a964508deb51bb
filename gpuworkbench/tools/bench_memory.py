"""`python -m gpuworkbench.tools.bench_memory DIR`: measure the cases planned in DIR, one after another.

DIR holds plan.json and a configuration for each case; the results go to DIR/result.json and progress to stdout, one
JSON object a line. Each case is a run of the trainer's own: built, stepped and validated by its functions, with a
predicted stretch in between as the hybrid trainer calls for one. One run is in memory at a time; rounds go through all
cases, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.data import PreparedData, load_same_tokens
from gpuworkbench.errors import ExitCode, WorkbenchError
from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.io import atomic_write_bytes, atomic_write_json, read_regular_file
from gpuworkbench.memory.allocation_profile import card_snapshot, timeline
from gpuworkbench.memory.tensor_bytes import TensorBytes
from gpuworkbench.plan.memory_bench import BenchPlan, BenchResult, CaseResult
from gpuworkbench.plan.memory_cases import without_hybrid
from gpuworkbench.tools.bench_process import emit, run_as_process
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.trial import scratch_run, train_trial

PLAN, RESULT = "plan.json", "result.json"
MAX_FILE_BYTES = 1024 * 1024
WARM_STEPS = 1


class Meter(Protocol):
    """Counts the most bytes in use by label."""

    def mark(self, label: str) -> None:
        """What follows belongs to `label`."""


class CardMeter:
    """The peaks of torch's caching allocator."""

    def __init__(self) -> None:
        self.label = ""
        self.peaks: dict[str, int] = {}

    def mark(self, label: str) -> None:
        torch.cuda.synchronize()
        self.peaks[self.label] = max(self.peaks.get(self.label, 0), torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        self.label = label


def main(directory: str) -> int:
    """Measure everything; returns the exit code."""
    try:
        root = Path(directory)
        plan = msgspec.json.decode(read_regular_file(root / PLAN, MAX_FILE_BYTES), type=BenchPlan)
        configs = [read_config(root / f"case-{number}.toml") for number in range(len(plan.cases))]
        result = measure(plan, configs, load_same_tokens(configs[0]))
        atomic_write_json(root / RESULT, result)
    except WorkbenchError as error:
        print(f"gpuworkbench: {error.line()}", file=sys.stderr)
        return error.exit_code
    return ExitCode.OK


def read_config(path: Path) -> RunConfig:
    """One case, the predicted stretch left to us. Raises ConfigError."""
    return without_hybrid(build(parse_toml(read_config_file(path), str(path)), str(path)))


def measure(plan: BenchPlan, configs: Sequence[RunConfig], data: PreparedData) -> BenchResult:
    """Peaks, losses and times of every case."""
    results = []
    refused: dict[str, str] = {}
    for name, config in zip(plan.cases, configs, strict=True):
        emit(what=f"{name}: memory and loss")
        try:
            results.append(memory_and_loss(plan, name, config, data))
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
            refused[name] = "does not fit"
            results.append(CaseResult(name=name, changed={}, refused=refused[name]))
    rounds = []
    for number in range(plan.rounds):
        emit(what=f"step times, round {number + 1} of {plan.rounds}")
        rounds.append(
            {
                name: step_time_s(plan, config, data)
                for name, config in zip(plan.cases, configs, strict=True)
                if name not in refused
            }
        )
    device = configs[0].device.kind
    return BenchResult(
        plan=plan,
        memory="allocator" if device == "cuda" else "tensors",
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        environment=environment(),
        cases=tuple(with_times(result, rounds, plan.cases[0]) for result in results),
    )


def memory_and_loss(plan: BenchPlan, name: str, config: RunConfig, data: PreparedData) -> CaseResult:
    """Peaks in full and predicted steps, what a stretch costs, what was moved, and the loss of a training."""
    with metered(config, plan, name) as (meter, peaks), scratch_run(config, data) as (run, _):
        meter.mark("full")
        for _ in range(WARM_STEPS + 1):
            train_one_step(run)
        switch_s = predicted_stretch(run, plan.virtual_steps, meter)
        train_one_step(run)
        meter.mark("end")
        moved = [event for event in logged(run) if event["type"] == "offload" and event["num_bytes"]]
    trial = train_trial(config, data)
    return CaseResult(
        name=name,
        changed={},
        peak_full_bytes=peaks["full"],
        peak_predict_bytes=peaks["predict"],
        switch_s=switch_s,
        val_loss=trial.val_loss,
        diverged=trial.diverged,
        offloaded_bytes=sum(event["num_bytes"] for event in moved),
        offload_s=sum(event["duration_s"] for event in moved),
        offload_hidden_s=sum(event["overlapped_s"] for event in moved),
    )


@contextmanager
def metered(config: RunConfig, plan: BenchPlan, name: str) -> Iterator[tuple[Meter, dict[str, int]]]:
    """A meter, and its peaks by label once the block is left. Writes the allocation profile of the case asked for."""
    peaks: dict[str, int] = {}
    wants_profile = plan.snapshot is not None and name == plan.snapshot_case
    if config.device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        card = CardMeter()
        with card_snapshot(Path(plan.snapshot) if wants_profile and plan.snapshot else None):
            yield card, peaks
        peaks |= card.peaks
        return
    with TensorBytes() as recording:
        yield recording, peaks
    peaks |= recording.peaks()
    if wants_profile and plan.snapshot:
        path = Path(plan.snapshot)
        atomic_write_bytes(path, timeline(recording.changes, as_csv=path.suffix == ".csv"))


def predicted_stretch(run: TrainingRun, virtual_steps: int, meter: Meter) -> float:
    """A predicted phase with a probe in it; returns the seconds that were spent on changing over."""
    step, spent_s = run.progress.step, 0.0

    def timed(work: Any) -> None:
        nonlocal spent_s
        settle(run)
        started = time.perf_counter()
        work()
        settle(run)
        spent_s += time.perf_counter() - started

    def virtual(remaining: int) -> None:
        for strategy in run.strategies:
            strategy.virtual_step(remaining)

    timed(lambda: run.phases.change(step, "predict", "measured", virtual_steps))
    timed(lambda: virtual(virtual_steps))
    place = run.curriculum.place(run.progress.tokens_seen)
    batch = next(iter(run.train_batches.of_step(run.progress.sequences_seen, place)))
    meter.mark("predict")
    with torch.no_grad():
        run.forward(batch.x, batch.y)
    meter.mark("full")
    for remaining in range(virtual_steps - 1, 0, -1):
        timed(lambda remaining=remaining: virtual(remaining))
    timed(lambda: run.phases.change(step, "full", "measured"))
    return spent_s


def step_time_s(plan: BenchPlan, config: RunConfig, data: PreparedData) -> float:
    """Median seconds of a step, in a run of its own."""
    seconds = []
    with scratch_run(config, data) as (run, _):
        for _ in range(WARM_STEPS):
            train_one_step(run)
        for _ in range(plan.timed_steps):
            settle(run)
            started = time.perf_counter()
            train_one_step(run)
            settle(run)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def with_times(result: CaseResult, rounds: Sequence[dict[str, float]], plain: str) -> CaseResult:
    """`result` with its step times and their ratio to plain's."""
    if result.refused:
        return result
    ratios = [times[result.name] / times[plain] for times in rounds if plain in times]
    return msgspec.structs.replace(
        result,
        step_times_s=tuple(times[result.name] for times in rounds),
        step_time_ratio=statistics.median(ratios) if ratios else None,
    )


def settle(run: TrainingRun) -> None:
    """Wait for the card, where there is one."""
    if run.device.torch_device.type == "cuda":
        torch.cuda.synchronize()


def logged(run: TrainingRun) -> list[dict[str, Any]]:
    """The run's events so far."""
    lines = read_regular_file(run.paths.events, 64 * MAX_FILE_BYTES).splitlines()
    return [msgspec.json.decode(line) for line in lines]


def is_full(error: BaseException) -> bool:
    """Whether memory ran out."""
    from gpuworkbench.training.memory_errors import is_out_of_memory

    return is_out_of_memory(error)


def environment() -> dict[str, Any]:
    """What the numbers need beside them."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average_1min": os.getloadavg()[0],
    }


if __name__ == "__main__":
    run_as_process(main)
