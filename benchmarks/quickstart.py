"""The quickstart preset from command to summary, as a new user meets it.

    python -m benchmarks.quickstart [--run RUN_DIR]

Records the trainer's time, step time, the loss along the way and the sample, and the last validation loss of the same
run without the hybrid trainer (not with --run). Targets: about two
minutes on two cores, <= 0.2 s a step, loss down by >= 1 nat in 60 steps. Stored as benchmarks/results/quickstart.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._record import environment, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="describe a finished run (of `make run`, say) instead of training one")
    run = parser.parse_args().run
    without = None
    with tempfile.TemporaryDirectory() as folder:
        environ = dict(os.environ)
        if run is None:
            environ["GPUWORKBENCH_CACHE_DIR"] = str(Path(folder) / "cache")
            run = Path(folder) / "runs" / "quickstart"
            where = ["--runs-dir", str(run.parent), "--run-id", run.name]
            train = [sys.executable, "-m", "gpuworkbench", "--headless", "--preset", "quickstart"]
            subprocess.run([*train, *where], env=environ, check=True)
            plain = run.with_name("plain")
            where = ["--runs-dir", str(plain.parent), "--run-id", plain.name, "--set", "hybrid.enabled=false"]
            subprocess.run([*train, *where], env=environ, check=True)
            without = last_validation(events_of(plain))
        write = [sys.executable, "-m", "gpuworkbench", "sample", str(run), "--tokens", "80"]
        sample = subprocess.run(write, env=environ, check=True, capture_output=True, text=True).stdout
        results = measure(events_of(run), sample)
    results["last_val_loss_without_prediction"] = without
    result = {"environment": environment("torch", "tokenizers", "tiktoken"), "results": results}
    print(write_result("quickstart", result).read_text())


def events_of(run: Path) -> list[dict[str, Any]]:
    """A run's log."""
    return [msgspec.json.decode(line) for line in (run / "events.jsonl").read_bytes().splitlines()]


def last_validation(events: list[dict[str, Any]]) -> float:
    """The last validation loss."""
    return float([event["loss"] for event in events if event["type"] == "eval"][-1])


def measure(events: list[dict[str, Any]], sample: str) -> dict[str, Any]:
    """The figures of one run's events."""
    steps = [event for event in events if event["type"] == "step"]
    evals = [event for event in events if event["type"] == "eval"]
    saved = [event for event in events if event["type"] == "checkpoint_saved"]
    jumps = [event for event in events if event["type"] == "prediction"]
    switched_off = [event["step"] for event in events if event.get("code") == "prediction_off"]
    loss = {event["step"]: event["loss"] for event in steps}
    seconds = events[-1]["time_unix_s"] - events[0]["time_unix_s"]
    return {
        "n_params": events[0]["n_params"],
        "seconds_from_start_to_end_of_the_trainer": seconds,
        "steps": len(steps),
        "step_time_median_s": statistics.median(event["step_time_s"] for event in steps),
        "tokens_per_s_median": statistics.median(event["tokens_per_s"] for event in steps),
        "loss_step_1": loss[1],
        "loss_step_60": loss[60],
        "loss_last": loss[len(steps)],
        "val_loss": {event["step"]: event["loss"] for event in evals},
        "jumps_kept": sum(jump["accepted"] for jump in jumps),
        "jumps_undone": sum(not jump["accepted"] for jump in jumps),
        "share_of_jumps_and_probes": sum(jump["duration_s"] for jump in jumps) / seconds,
        "prediction_switched_off_at_step": switched_off,
        "checkpoint_stall_s_max": max(event["stall_s"] for event in saved),
        "sample": sample,
    }


if __name__ == "__main__":
    main()
