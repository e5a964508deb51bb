"""How fast an event log replays, how fast it is written, and how fast ten million events open through the index.

    python -m benchmarks.event_replay [--events N] [--large N] [--rounds N]

Replay is read + decode + reduce + one snapshot, on one core, medians over rounds, for a log of plain training and for
one of hybrid training (phase changes, predictions, corrections and transfers among the steps). Opening runs in a
fresh process each time and reports the growth of its peak resident memory. Target: 250,000 events/s, 2 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._record import environment, write_result
from gpuworkbench.events import schema
from gpuworkbench.events.codec import encode
from gpuworkbench.events.index import INDEX_NAME, IndexKeeper
from gpuworkbench.events.reader import read_all
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.reducer import Reducer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the replayed logs")
    parser.add_argument("--large", type=int, default=10_000_000, help="events of the log opened through its index")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(*measure_open(options.open))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPUWORKBENCH_CACHE_DIR"] = str(Path(folder) / "cache")
        results["write"] = measure_write(Path(folder) / "written.jsonl")
        for n in sorted({options.events, options.large}):
            results[f"open_{n}_events"] = measure_large(Path(folder) / str(n), n, options.rounds)
        for kind in ("training", "hybrid"):
            path = Path(folder) / f"{kind}.jsonl"
            write_log(path, options.events, hybrid=kind == "hybrid")
            results[f"replay_{kind}"] = measure_replay(path, options.events, options.rounds)
            path.unlink()
    path = write_result("event_replay", {"environment": environment("msgspec", "numpy"), "results": results})
    print(path.read_text())


def measure_write(path: Path, n: int = 50_000) -> dict[str, Any]:
    """Microseconds of one `EventWriter.emit` of a step event."""
    writer = EventWriter(path, 1)
    fields = step_fields(1)
    start = time.perf_counter()
    for step in range(n):
        writer.emit(schema.Step, step, **fields)
    seconds = time.perf_counter() - start
    writer.close()
    return {"events": n, "emit_us": round(seconds / n * 1e6, 2)}


def measure_replay(path: Path, n: int, rounds: int) -> dict[str, Any]:
    """Events a second of a full replay without an index."""
    rates = []
    for _ in range(rounds):
        start = time.process_time()
        log = LiveLog(path, use_index=False)
        while log.poll().lines:
            pass
        state = log.state()
        rates.append(n / (time.process_time() - start))
        log.close()
        if state.n_events != n:
            raise SystemExit(f"replayed {state.n_events} of {n} events")
    return {
        "events": n,
        "log_bytes": path.stat().st_size,
        "events_per_s": round(statistics.median(rates)),
        "live_snapshot_ms": round(measure_snapshot(path), 3),
        "rounds": rounds,
    }


def measure_snapshot(path: Path, n: int = 200) -> float:
    """Milliseconds of taking in one more event and making a snapshot, on a long run: what a live screen pays."""
    events = read_all(path)
    reducer = Reducer()
    reducer.apply(events[:-n])
    times = []
    for event in events[-n:]:
        start = time.perf_counter()
        reducer.apply([event])
        reducer.snapshot()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure_large(folder: Path, n: int, rounds: int) -> dict[str, Any]:
    """Seconds to open a log through its index, with 1,000 events written since."""
    folder.mkdir()
    path = folder / "events.jsonl"
    write_log(path, n - 1000)
    start = time.perf_counter()
    keeper = IndexKeeper(path)
    keeper.finish()
    built_s = time.perf_counter() - start
    write_log(path, 1000, first=n - 1000)
    runs = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "benchmarks.event_replay", "--open", str(path)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        if int(out[0]) != n:
            raise SystemExit(f"opened {out[0]} of {n} events")
        runs.append((float(out[1]), int(out[2])))
    result = {
        "log_bytes": path.stat().st_size,
        "index_bytes": (folder / INDEX_NAME).stat().st_size,
        "index_built_s": round(built_s, 2),
        "open_s": round(statistics.median(run[0] for run in runs), 4),
        "peak_rss_growth_bytes": max(run[1] for run in runs),
        "builder_peak_rss_bytes": peak_rss_bytes(),
    }
    path.unlink()
    return result


def measure_open(path: Path) -> tuple[int, float, int]:
    """(events, seconds, growth of peak RSS) of opening a log in this process."""
    before = peak_rss_bytes()
    start = time.perf_counter()
    state = LiveLog(path).catch_up()
    return state.n_events, time.perf_counter() - start, peak_rss_bytes() - before


def peak_rss_bytes() -> int:
    """Of this process alone: getrusage's maximum is inherited from the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def write_log(path: Path, n: int, *, first: int = 0, hybrid: bool = False) -> None:
    """Append `n` synthetic events, `seq` from `first` on."""
    with path.open("ab", buffering=1 << 20) as stream:
        for seq, (cls, step, fields) in zip(range(first, first + n), stream_of_events(first, hybrid), strict=False):
            event = cls(v=1, seq=seq, time_unix_s=1.7e9 + seq, mono_s=seq * 0.1, attempt=1, step=step, **fields)
            stream.write(encode(event))


def stream_of_events(first: int, hybrid: bool) -> Iterator[tuple[type[schema.Event], int, dict[str, Any]]]:
    """Endless events: a memory event every tenth, a phase cycle of 40 steps where hybrid, an eval every 500 steps."""
    step = first
    if first == 0:
        yield (
            schema.RunStarted,
            0,
            {"run_id": "r", "preset": "p", "pid": 1, "config_sha256": "c", "device": "cpu", "max_steps": 10**7},
        )
    while True:
        step += 1
        yield schema.Step, step, step_fields(step)
        if step % 10 == 0:
            yield schema.Memory, step, {"host_rss_bytes": 2**30 + step, "allocated_bytes": 2**33 + step}
        if step % 500 == 0:
            numbers = {"loss": 3.2, "perplexity": 24.5, "tokens": 8192, "duration_s": 1.5}
            yield schema.Eval, step, {"split": "val", **numbers}
        if hybrid:
            yield from hybrid_events(step)


def hybrid_events(step: int) -> Iterator[tuple[type[schema.Event], int, dict[str, Any]]]:
    transfer = {"target": "optimizer", "phase": "full", "num_bytes": 10**8, "freed_bytes": 10**8}
    yield schema.Offload, step, {"op": "offload", **transfer, "duration_s": 0.01, "overlapped_s": 0.008}
    if step % 40 == 0:
        yield schema.PhaseChanged, step, {"from_phase": "full", "to_phase": "predict", "reason": "confident"}
        probes = {"predicted_loss": 3.1, "probe_before": 3.2, "probe_after": 3.15, "accepted": True}
        jump = {"predictor": "linear", "exploration": False, "horizon_steps": 5, "confidence": 0.9}
        yield schema.Prediction, step, jump | probes
        yield schema.PhaseChanged, step, {"from_phase": "predict", "to_phase": "correct", "reason": "horizon"}
        losses = {"actual_loss": 3.15, "predicted_loss": 3.1, "residual_norm": 0.2, "rolled_back": False}
        yield schema.Correction, step, losses
        yield schema.PhaseChanged, step, {"from_phase": "correct", "to_phase": "full", "reason": "corrected"}


def step_fields(step: int) -> dict[str, Any]:
    return {
        "phase": "full",
        "loss": 3.0 + (step * 7919 % 1000) / 1234.5,
        "perplexity": 22.75312,
        "grad_norm": 0.5 + (step * 31 % 97) / 99.1,
        "lr": 6e-4,
        "tokens_seen": step * 8192,
        "tokens_per_s": 18000.0 + (step * 17 % 1001) / 3.3,
        "step_time_s": 0.1 + (step * 13 % 101) / 9999.1,
        "precision": "bf16",
        "effective_batch_size": 32,
        "micro_batch_index": 3,
        "grad_accum_steps": 4,
    }


if __name__ == "__main__":
    main()
