"""How the app bears up: first frame, opening a long run, and keys while events pour in. No training, no card.

python benchmarks/app_load.py [--events 1000000] [--rate 10000] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._record import environment, write_result
from gpuworkbench.events.codec import encode
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.panels.loss import LossPanel
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.services import Services
from tests.fixtures.event_logs import LogBuilder
from tests.fixtures.recorded_run import loss_at, new_run

SIZE = (140, 40)


def step_line(number: int) -> bytes:
    """One step event as the trainer writes it."""
    log = LogBuilder()
    log.step(number, loss_at(number), tokens_seen=1024)
    return encode(log.events[0])


def long_run(runs: Path, n_events: int) -> RunPaths:
    """A run of `n_events` steps."""
    paths = new_run(runs, "20231114-221320-long-0001")
    with paths.events.open("wb") as stream:
        stream.write(encode(LogBuilder().start(run_id=paths.run_id, max_steps=n_events).events[0]))
        template = step_line(123_456_789)
        for number in range(1, n_events + 1):
            stream.write(template.replace(b"123456789", b"%d" % number))
    return paths


async def open_long(paths: RunPaths, n_events: int) -> dict[str, float]:
    """Seconds until something of the run is drawn, and until all of it is."""
    app = WorkbenchApp(Services(runs_dir=paths.root.parent), paths)
    started = time.perf_counter()
    async with app.run_test(size=SIZE) as pilot:
        first_s = None
        while True:
            await pilot.pause(0.01)
            view = app.screen.view if isinstance(app.screen, Live) else None
            if view is not None and first_s is None and view.state.n_events:
                first_s = time.perf_counter() - started
            if view is not None and view.state.n_events > n_events:
                break
        complete_s = time.perf_counter() - started
    assert first_s is not None
    return {"first_view_s": first_s, "complete_s": complete_s}


async def keys_under_load(runs: Path, rate: int, seconds: float) -> dict[str, Any]:
    """Latency of a key that redraws a plot, while `rate` events a second are appended; and that none is lost."""
    paths = new_run(runs, "20231114-221320-fast-0002")
    paths.events.write_bytes(encode(LogBuilder().start(run_id=paths.run_id, max_steps=10**9).events[0]))
    written, stop = [0], threading.Event()
    template = step_line(123_456_789)

    def pour() -> None:
        with paths.events.open("ab", buffering=0) as stream:
            begun = time.perf_counter()
            while not stop.is_set():
                due = int((time.perf_counter() - begun) * rate)
                numbers = range(written[0] + 1, due + 1)
                stream.write(b"".join(template.replace(b"123456789", b"%d" % number) for number in numbers))
                written[0] = max(due, written[0])
                time.sleep(0.01)

    app = WorkbenchApp(Services(runs_dir=runs), paths)
    latencies = []
    async with app.run_test(size=SIZE) as pilot:
        thread = threading.Thread(target=pour)
        thread.start()
        await pilot.pause(0.5)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            panel = app.screen.query_one(LossPanel)
            before, pressed = panel.is_log, time.perf_counter()
            app.simulate_key("l")  # not pilot.press: that waits for an idle app, which this one never is
            while panel.is_log == before:
                await asyncio.sleep(0.001)
            latencies.append(time.perf_counter() - pressed)
            await asyncio.sleep(0.05)
        stop.set()
        thread.join()
        live = app.screen
        assert isinstance(live, Live)
        deadline = time.perf_counter() + 30
        while (live.view is None or live.view.state.step < written[0]) and time.perf_counter() < deadline:
            await pilot.pause(0.05)
        assert live.view is not None
        n_seen = live.view.state.n_events - 1
    latencies.sort()
    return {
        "events_per_s": written[0] / seconds,
        "events_written": written[0],
        "events_seen": n_seen,
        "keys": len(latencies),
        "key_latency_median_s": statistics.median(latencies),
        "key_latency_p99_s": latencies[min(int(len(latencies) * 0.99), len(latencies) - 1)],
    }


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        runs = Path(directory)
        paths = long_run(runs, arguments.events)
        results: dict[str, Any] = {"events": arguments.events}
        results["open_without_index"] = asyncio.run(open_long(paths, arguments.events))
        results["load"] = asyncio.run(keys_under_load(runs, arguments.rate, arguments.seconds))
        results["max_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(results)
    write_result("app_load", {"environment": environment("textual", "plotext", "msgspec"), **results})


if __name__ == "__main__":
    main()
