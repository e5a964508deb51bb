"""How far off the planner is: formulas and traced steps against what torch's profiler counts in real steps on a CPU.

    python -m benchmarks.plan_accuracy

For each case two real optimizer steps run under torch.profiler with profile_memory: every allocation and release of
torch's CPU allocator, which is not the tracker that the trace tier uses. The analytic tier's formulas and the trace of
fake tensors are held against its peak. Then the flagship is traced, for the time and the memory that takes, and the
analytic tier is timed. Stored as benchmarks/results/plan_accuracy.json. It says nothing about a card's allocator.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import msgspec

from benchmarks._record import torch_environment, write_result
from gpuworkbench.config.loader import parse_set
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.launch.spawn import torch_command, trainer_environment
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import MIB

CASES = (
    "quickstart",
    "rtx5080_gpt2_small_baseline --cpu-twin",
    "rtx4090_gpt2_small --cpu-twin",
    "rtx4090_gpt2_small --cpu-twin memory.activation_checkpointing=every_n",
    "quickstart memory.chunked_cross_entropy=true memory.cross_entropy_chunk_rows=256 train.grad_accum_steps=2",
    "rtx5080_gpt2_medium --cpu-twin",
    "rtx5080_1b --cpu-twin",
    "rtx5080_1b_tight --cpu-twin",
    "quickstart memory.optimizer_in_backward=true train.grad_clip_norm=0",
    "quickstart memory.optimizer_in_backward=true train.grad_clip_norm=0 train.micro_batch_size=1 train.seq_len=16",
    "rtx5080_1b_exact --cpu-twin",
)
FLAGSHIP = "rtx5080_1b"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, default=len(CASES), metavar="N", help="the first N cases")
    only = parser.parse_args().only
    flagship = trace_alone(configured(FLAGSHIP))  # first: the peak of children's memory is that of all before it
    results = {case: compare(case) for case in CASES[:only]}
    milliseconds = analytic_ms(configured(FLAGSHIP))
    worst = {
        tier: max((abs(each[f"{tier}_error"]) for each in results.values()), default=None)
        for tier in ("analytic", "trace")
    }
    path = write_result(
        "plan_accuracy",
        {
            "environment": torch_environment(1),
            "cases": results,
            "worst_error": worst,
            f"trace of {FLAGSHIP}": flagship,
            "analytic_ms": milliseconds,
        },
    )
    print(path.read_text())


def configured(case: str) -> RunConfig:
    """A preset's name, perhaps --cpu-twin, and keys to set."""
    name, *words = case.split()
    sets = [parse_set(word) for word in words if word != "--cpu-twin"]
    config = with_known_vocabulary(configure(load_preset(name), sets=sets, cpu_twin="--cpu-twin" in words))
    assert config is not None
    replace = msgspec.structs.replace
    # A step is compared; what a jump takes beside it is not in it.
    return replace(
        config, train=replace(config.train, threads=1), hybrid=replace(config.hybrid, enabled=False, ema_eval_decay=0.0)
    )


def compare(case: str) -> dict[str, Any]:
    """Peak bytes of tensors, measured, traced and from formulas; errors as a share of what was measured."""
    config = configured(case)
    measured = ask("gpuworkbench.tools.probe", config)["peak_bytes"]
    traced = ask("gpuworkbench.tools.trace", config)["total_bytes"]
    predicted = estimate(config, kind="cpu")
    assert predicted is not None
    result = {
        "measured_bytes": measured,
        "trace_bytes": traced,
        "analytic_bytes": predicted.total_bytes,
        "trace_error": round(traced / measured - 1, 5),
        "analytic_error": round(predicted.total_bytes / measured - 1, 5),
        "moment": predicted.moment,
    }
    print(f"{case}: {result}", file=sys.stderr)
    return result


def ask(module: str, config: RunConfig, kind: str = "cpu") -> dict[str, Any]:
    """The answer of a tool in a process of its own."""
    done = subprocess.run(
        torch_command(module, kind), input=dump_toml(config), capture_output=True, env=trainer_environment(), check=True
    )
    answer: dict[str, Any] = msgspec.json.decode(done.stdout)
    return answer


def trace_alone(config: RunConfig) -> dict[str, Any]:
    """Seconds (wall and processor's) and peak memory of a trace for a card, torch's import included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    answer = ask("gpuworkbench.tools.trace", config, "cuda")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    predicted = estimate(config, kind="cuda")
    assert predicted is not None
    tensors = predicted.allocator_bytes - (predicted.parts["workspace"] if predicted.moment == "loss" else 0)
    return {
        "wall_s": round(time.perf_counter() - started, 2),
        "processor_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_rss_mib": round(after.ru_maxrss * 1024 / MIB),
        "total_bytes": answer["total_bytes"],
        "analytic_against_trace": round(tensors / answer["total_bytes"] - 1, 5),
    }


def analytic_ms(config: RunConfig) -> float:
    """Milliseconds of processor time of an estimate, the best of many."""
    times = []
    for _ in range(200):
        started = time.process_time()
        estimate(config, kind="cuda")
        times.append(time.process_time() - started)
    return round(min(times) * 1e3, 4)


if __name__ == "__main__":
    main()
