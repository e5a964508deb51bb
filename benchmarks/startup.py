"""How long a person waits before anything happens: `--help`, lists, and a headless run's first step.

    python -m benchmarks.startup [--rounds 7]

Whole processes, medians over rounds, warm file cache. Targets: `--help` 0.3 s; first step 10 s after the command once
corpus and tokenizer are cached. Stored as benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._record import environment, summary, write_result

COMMANDS = {
    "--help": ["--help"],
    "presets": ["presets"],
    "runs": ["runs"],
    "refusal of rtx5080_1b without a card": ["--headless", "--preset", "rtx5080_1b"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "GPUWORKBENCH_RUNS_DIR": str(Path(folder) / "runs"), "CUDA_VISIBLE_DEVICES": ""}
        results: dict[str, Any] = {
            name: summary(time_command(words, environ, rounds)) for name, words in COMMANDS.items()
        }
        first_step(environ, "warm-up")  # prepares the corpus where it is not cached
        results["first step of quickstart, data cached"] = summary(
            [first_step(environ, f"round-{number}") for number in range(rounds)]
        )
    path = write_result("startup", {"environment": environment("torch", "msgspec"), "results": results})
    print(path.read_text())


def time_command(words: list[str], environ: dict[str, str], rounds: int) -> list[float]:
    """Seconds of `gpuworkbench WORDS`, once per round, after one that is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "gpuworkbench", *words], env=environ, capture_output=True, check=False)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def first_step(environ: dict[str, str], run_id: str) -> float:
    """Seconds from the command to the first step's event."""
    started = time.time()
    words = ["--headless", "--preset", "quickstart", "--steps", "2", "--run-id", run_id]
    off = [word for key in ("eval", "sample", "checkpoint") for word in ("--set", f"{key}.interval_steps=0")]
    subprocess.run([sys.executable, "-m", "gpuworkbench", *words, *off], env=environ, capture_output=True, check=True)
    log = Path(environ["GPUWORKBENCH_RUNS_DIR"]) / run_id / "events.jsonl"
    events = [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]
    return float(next(event["time_unix_s"] for event in events if event["type"] == "step") - started)


if __name__ == "__main__":
    main()
