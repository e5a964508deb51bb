"""How the app bears up: first frame, opening long runs, keys while events pour in, memory over an hour. No training.

    python -m benchmarks.app_load [--events 1000000] [--large 10000000] [--rate 10000] [--seconds 20] [--hours 1]

Every part is a process of its own, medians over rounds. Targets: first frame 0.7 s; a run of a million events drawn
with its complete curves within 1 s; at 10,000 events/s 99 of 100 keys answered within 100 ms and no event lost; growth
of resident memory over an hour's events at most 50 MB. Stored as benchmarks/results/app_load.json.

"First frame" is from the command to the terminal's first bytes that show Home, "presets" to those that show a preset's
name, on a pty of 140 x 40 with bytecode compiled; processor seconds stand beside, which other work on the machine
stretches less. "Opening" is from the app's start to a live screen whose loss panel has drawn a
state that holds every event. "An hour" is an hour's events of a fast run (10 steps a second, hybrid: phases,
predictions, transfers), written much faster than that and followed by the app as they come, with keys pressed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS, environment, summary, write_result

FRAMES = ("first_frame", "first_frame_cpu", "presets", "presets_cpu")
PARTS = ("frame", "open", "keys", "hour")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the long run")
    parser.add_argument("--large", type=int, default=10_000_000, help="events of the very long run; 0: without it")
    parser.add_argument("--rate", type=int, default=10_000, help="events a second while keys are pressed")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long keys are pressed")
    parser.add_argument("--hours", type=float, default=1.0, help="of events for the growth of memory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure these alone; the others stay as stored")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_part(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    stored = RESULTS / "app_load.json"
    kept = json.loads(stored.read_bytes())["results"] if options.only and stored.exists() else {}
    now = {name: {**found, "load_average_1min": os.getloadavg()[0]} for name, found in results.items()}
    record = {"environment": environment("textual", "plotext", "msgspec"), "results": {**kept, **now}}
    print(write_result("app_load", record).read_text())


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The parts that are wanted, each in a process of its own."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ = {
        "GPUWORKBENCH_CACHE_DIR": str(root / "cache"),
        "XDG_CONFIG_HOME": str(root / "config"),
        "XDG_STATE_HOME": str(root / "state"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    os.environ.update(environ)
    results: dict[str, Any] = {}
    wanted = options.only or PARTS
    if "frame" in wanted:
        results |= measure_frames(options, root)
    if "open" in wanted:
        for n in filter(None, (options.events, options.large)):
            results[f"open_{n}_events"] = measure_opening(options, root, n)
    for name in ("keys", "hour"):
        if name in wanted:
            results[name] = part(name, options, root / f"runs-{name}")
    return results


def measure_frames(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The first frame, and the one with the presets."""
    part("frame", options, root / "runs")  # compiles what is not compiled yet
    frames = [part("frame", options, root / "runs") for _ in range(options.rounds)]
    return {name: summary([frame[f"{name}_s"] for frame in frames]) for name in FRAMES}


def measure_opening(options: argparse.Namespace, root: Path, n: int) -> dict[str, Any]:
    """A run of `n` events: without an index, through the one that this leaves, and through the trainer's."""
    from benchmarks.app_load_parts import INDEX_NAME, build_index, long_run

    run = long_run(root / f"runs-{n}", n)
    opened: dict[str, Any] = {"log_bytes": run.events.stat().st_size}
    opened["without_an_index"] = part("open", options, run.root, n)
    opened["through_the_readers_index"] = rounds(options, run.root, n)
    for kept in (root / "cache").rglob(f"*{Path(INDEX_NAME).suffix}"):
        kept.unlink()  # first: a trainer makes none of its own where one is there already
    build_index(run)
    opened["through_the_trainers_index"] = rounds(options, run.root, n)
    run.events.unlink()
    return opened


def rounds(options: argparse.Namespace, run: Path, n: int) -> dict[str, Any]:
    """The medians of opening a run a few times."""
    found = [part("open", options, run, n) for _ in range(options.rounds)]
    return {name: round(statistics.median(one[name] for one in found), 4) for name in found[0]}


def part(name: str, options: argparse.Namespace, run: Path, events: int | None = None) -> dict[str, Any]:
    """What a part measured in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.app_load", "--part", name, "--run", str(run)]
    words += ["--events", str(events or options.events), "--rate", str(options.rate)]
    words += ["--seconds", str(options.seconds), "--hours", str(options.hours)]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def run_part(options: argparse.Namespace) -> dict[str, Any]:
    """Within the process of a part."""
    import asyncio

    from benchmarks import app_load_parts as parts

    if options.part == "frame":
        return parts.first_frame(options.run)
    if options.part == "open":
        return asyncio.run(parts.open_run(options.run, options.events))
    if options.part == "keys":
        return asyncio.run(parts.keys_under_load(options.run, options.rate, options.seconds))
    return asyncio.run(parts.hour_of_events(options.run, options.hours))


if __name__ == "__main__":
    main()
