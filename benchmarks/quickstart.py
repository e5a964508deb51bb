"""The quickstart preset from command to summary, as a new user meets it.

    python -m benchmarks.quickstart

Records wall time with cold and with cached data, step time, the loss along the way and the sample. Targets: about two
minutes on two cores, <= 0.2 s a step, loss down by >= 1 nat in 60 steps. Stored as benchmarks/results/quickstart.json.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._record import environment, write_result


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            **os.environ,
            "GPUWORKBENCH_RUNS_DIR": str(Path(folder) / "runs"),
            "GPUWORKBENCH_CACHE_DIR": str(Path(folder) / "cache"),
        }
        started = time.perf_counter()
        command = [sys.executable, "-m", "gpuworkbench"]
        subprocess.run(
            [*command, "--headless", "--preset", "quickstart", "--run-id", "quickstart"], env=environ, check=True
        )
        wall_s = time.perf_counter() - started
        sample = subprocess.run(
            [*command, "sample", "quickstart", "--tokens", "80"],
            env=environ,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        log = Path(environ["GPUWORKBENCH_RUNS_DIR"]) / "quickstart" / "events.jsonl"
        events = [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]
    result = {"environment": environment("torch", "tokenizers", "tiktoken"), "results": measure(events, wall_s, sample)}
    print(write_result("quickstart", result).read_text())


def measure(events: list[dict[str, Any]], wall_s: float, sample: str) -> dict[str, Any]:
    """The figures of one run's events."""
    steps = [event for event in events if event["type"] == "step"]
    evals = [event for event in events if event["type"] == "eval"]
    saved = [event for event in events if event["type"] == "checkpoint_saved"]
    loss = {event["step"]: event["loss"] for event in steps}
    return {
        "n_params": events[0]["n_params"],
        "wall_s_with_cold_data": wall_s,
        "steps": len(steps),
        "step_time_median_s": statistics.median(event["step_time_s"] for event in steps),
        "tokens_per_s_median": statistics.median(event["tokens_per_s"] for event in steps),
        "loss_step_1": loss[1],
        "loss_step_60": loss[60],
        "loss_last": loss[len(steps)],
        "val_loss": {event["step"]: event["loss"] for event in evals},
        "checkpoint_stall_s_max": max(event["stall_s"] for event in saved),
        "sample": sample,
    }


if __name__ == "__main__":
    main()
