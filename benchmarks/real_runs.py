"""Runs made by the real command, and what their logs and a short measured run of each say: for comparing presets.

`figures` reads a finished run's events. `peaks` makes a short run of the same configuration in this process, with every
allocation recorded, through all phases that it has: speed is never taken from it, since recording costs time.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks._record import RESULTS, environment

SHORT_STEPS = 14
# Phases short enough that a few recorded steps pass through them all; what is held in each is the same.
SHORT = {
    "hybrid.warmup_steps": 1,
    "hybrid.full_steps": 4,
    "checkpoint.interval_steps": 0,
    "eval.interval_steps": 0,
    "sample.interval_steps": 0,
}
# Parts of operators' names, by the kind they are counted as.
KINDS: Mapping[str, tuple[str, ...]] = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "loss": ("log_softmax", "nll_loss", "cross_entropy"),
    "optimizer": ("adam", "_foreach", "clip_grad"),
    "norms, GELU": ("layer_norm", "gelu"),
    "copies": ("aten::copy_", "aten::clone", "aten::zero_", "aten::fill_"),
}


class Case(NamedTuple):
    """A preset with keys on top; `words` are further flags, such as --cpu-twin."""

    preset: str
    sets: Mapping[str, Any] = {}
    words: tuple[str, ...] = ()

    def flags(self, **more: Any) -> list[str]:
        """As typed."""
        sets = {**self.sets, **more}
        return [
            "--preset",
            self.preset,
            *self.words,
            *(w for k, v in sets.items() for w in ("--set", f"{k}={_toml(v)}")),
        ]


def finished(case: Case, run: Path, steps: int | None) -> list[dict[str, Any]]:
    """The events of the run at `run`, which is made or resumed first where it is not finished."""
    events = read_events(run)
    if not (events and events[-1]["type"] == "run_finished" and events[-1]["status"] == "completed"):
        begun = [*case.flags(), *(["--steps", str(steps)] if steps else []), "--run-id", run.name]
        words = ["--resume", run.name] if run.exists() else begun
        command = [sys.executable, "-m", "gpuworkbench", "--headless", "--runs-dir", str(run.parent), *words]
        subprocess.run(command, check=True, stdout=sys.stderr)
        events = read_events(run)
    return events


def read_events(run: Path) -> list[dict[str, Any]]:
    """A run's log; empty where there is none."""
    path = run / "events.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def figures(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Speed, loss, stability and where the time went, of one finished run. Seconds, bytes, nats a token."""
    steps = list({event["step"]: event for event in _of(events, "step")}.values())  # of one trained twice, the last
    evals = [event for event in _of(events, "eval") if event["split"] == "val"]
    losses = [event["loss"] for event in steps]
    step_s = sum(event["step_time_s"] for event in steps)
    jumps = _of(events, "prediction")
    tokens, last = steps[-1]["tokens_seen"], evals[-1]["loss"] if evals else None
    known = [(a, b) for a, b in pairwise(losses) if a is not None and b is not None]
    return {
        "n_params": events[0]["n_params"],
        "device": events[0]["device"],
        "steps": len(steps),
        "tokens": tokens,
        "tokens_per_s": tokens / step_s,
        "step_time_median_s": statistics.median(event["step_time_s"] for event in steps),
        "wall_s": sum(_attempts_s(events)),
        "train_loss": losses[-1],
        "val_loss": last,
        "val_perplexity": None if last is None else math.exp(last),
        "nonfinite_losses": sum(loss is None for loss in losses),
        "max_loss_rise": max((b - a for a, b in known), default=0.0),
        "accepted": sum(event["accepted"] for event in jumps),
        "rejected": sum(not event["accepted"] for event in jumps),
        "rollbacks": sum(e["rolled_back"] for e in _of(events, "correction", "micro_correction")),
        "divergences": len(_of(events, "divergence")),
        "phase_steps": {p: [e["phase"] for e in steps].count(p) for p in dict.fromkeys(e["phase"] for e in steps)},
        "phase_shares": _shares(_phase_seconds(steps, jumps)),
        "time_shares": _shares(_spent(events, steps, jumps)),
        "transfers_not_hidden_s": sum(e["duration_s"] - e["overlapped_s"] for e in _of(events, "offload")),
        "host_peak_bytes": max((e["host_peak_rss_bytes"] or 0 for e in _of(events, "memory")), default=0) or None,
    }


def _of(events: Iterable[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] in types]


def _attempts_s(events: Sequence[dict[str, Any]]) -> list[float]:
    by_attempt: dict[int, list[float]] = {}
    for event in events:
        by_attempt.setdefault(event["attempt"], []).append(event["mono_s"])
    return [max(times) - min(times) for times in by_attempt.values()]


def _phase_seconds(steps: Sequence[dict[str, Any]], jumps: Sequence[dict[str, Any]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for event in steps:
        seconds[event["phase"]] = seconds.get(event["phase"], 0.0) + event["step_time_s"]
    if jumps:
        seconds["predict"] = seconds.get("predict", 0.0) + sum(event["duration_s"] or 0.0 for event in jumps)
    return seconds


def _spent(
    events: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], jumps: Sequence[dict[str, Any]]
) -> dict[str, float]:
    found = {
        "steps": sum(event["step_time_s"] for event in steps),
        "validation": sum(event["duration_s"] for event in _of(events, "eval")),
        "jumps": sum(event["duration_s"] or 0.0 for event in jumps),
        "checkpoints": sum(event["stall_s"] for event in _of(events, "checkpoint_saved")),
    }
    return {**found, "the rest": max(sum(_attempts_s(events)) - sum(found.values()), 0.0)}


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    whole = sum(seconds.values()) or 1.0
    return {name: round(value / whole, 4) for name, value in seconds.items() if value}


def measured_peaks(case: Case) -> dict[str, Any]:
    """`peaks` of the case, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.real_runs", *case.flags(**SHORT)]
    done = subprocess.run(command, check=True, capture_output=True)
    answer: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    return answer


def peaks(preset: str, sets: Sequence[str], *, cpu_twin: bool) -> dict[str, Any]:
    """Most bytes in use in each phase of a short run, and the share of time of each kind of operation. Imports torch.

    On a CPU bytes of tensors; on a card the allocator's, and what NVML says is used of it at each change of phase.
    """
    from benchmarks.recorded_run import record
    from gpuworkbench.config.loader import parse_set
    from gpuworkbench.launch.create import LaunchRequest, create

    with tempfile.TemporaryDirectory() as folder:
        overrides = [*map(parse_set, sets), parse_set(f"train.max_steps={SHORT_STEPS}")]
        request = LaunchRequest(
            preset=preset,
            runs_dir=Path(folder),
            sets=tuple(overrides),
            cpu_twin=cpu_twin,
            run_id="peaks",
            environ={},
            allows_idle=True,  # SHORT shortens the phases of presets that have only one
        )
        return record(create(request))


def operation_shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of the operators' own time by kind, what is of none as `other`; the largest first."""
    found: dict[str, float] = {}
    for name, spent in seconds.items():
        kind = next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "other")
        found[kind] = found.get(kind, 0.0) + spent
    whole = sum(found.values()) or 1.0
    return {kind: round(spent / whole, 4) for kind, spent in sorted(found.items(), key=lambda item: -item[1])}


def surroundings() -> dict[str, Any]:
    """The machine, its load and the versions."""
    return environment("torch", "numpy")


def run_comparison(
    description: str, name: str, measure: Callable[[Path, int], None], table: Callable[[dict[str, Any]], list[str]]
) -> None:
    """The command of a script that compares real runs: `measure(where, steps)` makes them and stores their result under
    `name`; the table of it is printed. Nothing is learnt from other runs, and they learn nothing here."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=Path, help="where runs are kept (default: they are thrown away)")
    parser.add_argument("--markdown", action="store_true", help="print the stored result as a table; runs nothing")
    arguments = parser.parse_args()
    if not arguments.markdown:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_STATE_HOME"] = folder
            measure((arguments.runs or Path(folder)).absolute(), arguments.steps)
    print("\n".join(table(msgspec.json.decode((RESULTS / f"{name}.json").read_bytes()))))


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=peaks.__doc__)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--cpu-twin", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    arguments = parser.parse_args()
    answer = peaks(arguments.preset, arguments.sets, cpu_twin=arguments.cpu_twin)
    print(msgspec.json.encode(answer).decode())


if __name__ == "__main__":
    main()
