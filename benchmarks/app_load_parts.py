"""The parts of benchmarks.app_load, each run in a process of its own."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.event_replay import peak_rss_bytes, stream_of_events
from gpuworkbench.events.codec import encode
from gpuworkbench.events.index import INDEX_NAME, IndexKeeper
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.panels.loss import LossPanel
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.services import Services
from tests.fixtures.event_logs import LogBuilder
from tests.fixtures.recorded_run import loss_at, new_run

__all__ = ["INDEX_NAME", "build_index", "first_frame", "hour_of_events", "keys_under_load", "long_run", "open_run"]

SIZE = (140, 40)
STEPS_PER_S = 10  # of the run whose hour is replayed: a small model on a fast card
WARM_SHARE = 0.1  # of the hour, after which buffers and caches have their size


def step_line(number: int) -> bytes:
    """One step event as the trainer writes it."""
    log = LogBuilder()
    log.step(number, loss_at(number), tokens_seen=1024)
    return encode(log.events[0])


def long_run(runs: Path, n_events: int) -> RunPaths:
    """A run of `n_events` events, all but the first of them steps."""
    runs.mkdir(parents=True)
    paths = new_run(runs, "20231114-221320-long-0001")
    before, after = step_line(123_456_789).split(b"123456789")
    with paths.events.open("wb", buffering=1 << 20) as stream:
        stream.write(encode(LogBuilder().start(run_id=paths.run_id, max_steps=n_events).events[0]))
        for number in range(1, n_events):
            stream.write(b"%b%d%b" % (before, number, after))
    return paths


def build_index(paths: RunPaths) -> None:
    """The index that a trainer keeps beside its log."""
    IndexKeeper(paths.events).finish()


def first_frame(runs: Path) -> dict[str, float]:
    """Seconds from the command to the first frame, and to the one that has the presets; wall and processor."""
    runs.mkdir(parents=True, exist_ok=True)
    master, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))
    environ = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "GPUWORKBENCH_RUNS_DIR": str(runs)}
    words = [sys.executable, "-m", "gpuworkbench"]
    started = time.perf_counter()
    app = subprocess.Popen(words, stdin=worker, stdout=worker, stderr=worker, env=environ, start_new_session=True)
    os.close(worker)
    seen, found = b"", {}
    wanted = {"first_frame": b"Presets", "presets": b"quickstart"}
    while len(found) < 2 * len(wanted) and time.perf_counter() - started < 60:
        if select.select([master], [], [], 0.01)[0]:
            seen += os.read(master, 1 << 16)
        for name, text in wanted.items():
            if text in seen and f"{name}_s" not in found:
                found |= {f"{name}_s": time.perf_counter() - started, f"{name}_cpu_s": cpu_time_s(app.pid)}
    app.send_signal(signal.SIGTERM)
    while app.poll() is None:
        if select.select([master], [], [], 0.05)[0]:
            try:
                os.read(master, 1 << 16)
            except OSError:
                break
    app.wait()
    assert len(found) == 2 * len(wanted), seen[-500:]
    return found


def cpu_time_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


async def open_run(root: Path, n_events: int) -> dict[str, Any]:
    """Seconds from the app's start until the run is drawn first, and until all of it is drawn."""
    paths = RunPaths(root)
    started, cpu_started = time.perf_counter(), time.process_time()
    app = WorkbenchApp(Services(runs_dir=root.parent), paths)
    async with app.run_test(size=SIZE):
        first_s = complete_s = None
        while complete_s is None:
            await asyncio.sleep(0.005)  # not a pause of the pilot, which asks every widget
            live = app.screen
            drawn = live.query_one(LossPanel).drawn if isinstance(live, Live) and live.is_mounted else None
            if drawn is not None and drawn.state.n_events:
                now = time.perf_counter() - started
                first_s = first_s or now
                if drawn.state.n_events >= n_events:
                    complete_s, cpu_s = now, time.process_time() - cpu_started
        curve = drawn.state.series["loss"]
        assert (curve.x[0], curve.x[-1]) == (1, n_events - 1), "the curve is not complete"
    assert first_s is not None
    return {
        "first_drawn_s": first_s,
        "complete_s": complete_s,
        "complete_cpu_s": cpu_s,
        "points_of_the_curve": len(curve),
        "peak_rss_bytes": peak_rss_bytes(),
    }


async def keys_under_load(runs: Path, rate: int, seconds: float) -> dict[str, Any]:
    """Latency of a key that redraws every plot, while `rate` events a second are appended; and that none is lost."""
    runs.mkdir(parents=True)
    paths = new_run(runs, "20231114-221320-fast-0002")
    paths.events.write_bytes(encode(LogBuilder().start(run_id=paths.run_id, max_steps=10**9).events[0]))
    pour = Pour(paths, rate)
    app = WorkbenchApp(Services(runs_dir=runs), paths)
    latencies, cpu = [], []
    async with app.run_test(size=SIZE) as pilot:
        pour.start()
        await pilot.pause(0.5)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            panel = app.screen.query_one(LossPanel)
            before, pressed, cpu_pressed = panel.axis, time.perf_counter(), time.process_time()
            app.simulate_key("l")  # not pilot.press: that waits for an idle app, which this one never is
            while panel.axis == before:
                await asyncio.sleep(0.001)
            latencies.append(time.perf_counter() - pressed)
            cpu.append(time.process_time() - cpu_pressed)
            await asyncio.sleep(0.05)
        written, took_s = pour.stop()
        n_seen = await _seen(app, written)
    latencies.sort(), cpu.sort()
    p99 = min(int(len(latencies) * 0.99), len(latencies) - 1)
    return {
        "events_per_s": written / took_s,
        "events_written": written,
        "events_in_the_state": n_seen - 1,
        "keys": len(latencies),
        "key_latency_median_s": latencies[len(latencies) // 2],
        "key_latency_p99_s": latencies[p99],
        "key_cpu_median_s": cpu[len(cpu) // 2],  # of the whole process until then, the follower's included
        "key_cpu_p99_s": cpu[p99],
        "key_latency_max_s": latencies[-1],
        "peak_rss_bytes": peak_rss_bytes(),
    }


class Pour:
    """A process that appends step events at a rate, as a trainer would: no part of the app's own."""

    def __init__(self, paths: RunPaths, rate: int) -> None:
        self._words = [sys.executable, "-c", _POUR, str(paths.events), str(rate)]
        self._line = step_line(123_456_789)
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def start(self) -> None:
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(self._line)
        self._process.stdin.flush()
        self._began = time.perf_counter()

    def stop(self) -> tuple[int, float]:
        """(events written, seconds)."""
        assert self._process is not None
        out, _ = self._process.communicate()  # the end of its input ends it
        return int(out), time.perf_counter() - self._began


_POUR = """
import select, sys, time
path, rate = sys.argv[1], int(sys.argv[2])
before, after = sys.stdin.buffer.readline().split(b"123456789")
written, begun = 0, time.perf_counter()
with open(path, "ab", buffering=0) as stream:
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        due = int((time.perf_counter() - begun) * rate)
        stream.write(b"".join(b"%b%d%b" % (before, number, after) for number in range(written + 1, due + 1)))
        written = max(due, written)
print(written)
"""


async def hour_of_events(runs: Path, hours: float) -> dict[str, Any]:
    """Growth of resident memory while an hour's events are followed and drawn, after a tenth of it to warm up."""
    runs.mkdir(parents=True)
    paths = new_run(runs, "20231114-221320-hour-0003")
    n_events = int(hours * 3600 * STEPS_PER_S * EVENTS_A_STEP)
    events = stream_of_events(0, hybrid=True)
    paths.events.touch()
    app = WorkbenchApp(Services(runs_dir=runs), paths)
    seq, warm_bytes, sizes, started = 0, None, [], time.perf_counter()
    async with app.run_test(size=SIZE) as pilot:
        with paths.events.open("ab", buffering=0) as stream:
            while seq < n_events:
                chunk = []
                for cls, step, fields in islice(events, min(400, n_events - seq)):
                    head = {"v": 1, "seq": seq, "time_unix_s": 1.7e9 + seq, "mono_s": seq * 0.1, "attempt": 1}
                    chunk.append(encode(cls(step=step, **head, **fields)))  # type: ignore[arg-type]
                    seq += 1
                stream.write(b"".join(chunk))
                await pilot.pause(0.1)
                app.simulate_key(KEYS[seq // 400 % len(KEYS)])
                if warm_bytes is None and seq >= WARM_SHARE * n_events:
                    gc.collect()
                    warm_bytes = rss_bytes()
                if seq // 400 % 25 == 0:
                    sizes.append(rss_bytes())
        seen = await _seen(app, seq - 1)
        gc.collect()
        end_bytes = rss_bytes()
    assert warm_bytes is not None
    return {
        "events": seq,
        "events_in_the_state": seen,
        "hours_of_a_run_of_10_steps_a_second": hours,
        "replayed_in_s": time.perf_counter() - started,
        "rss_after_warming_up_bytes": warm_bytes,
        "rss_at_the_end_bytes": end_bytes,
        "growth_bytes": end_bytes - warm_bytes,
        "highest_growth_bytes": max([*sizes, end_bytes]) - warm_bytes,
        "threads": threading.active_count(),
    }


EVENTS_A_STEP = 2.3  # of `stream_of_events` with the hybrid trainer's
KEYS = ("left", "x", "plus", "right", "minus", "right_square_bracket", "l", "0", "left_square_bracket")


def rss_bytes() -> int:
    """Resident memory now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def _seen(app: WorkbenchApp, n_events: int) -> int:
    """The events in the state of the shown run, once it has caught up."""
    live = app.screen
    assert isinstance(live, Live)
    deadline = time.perf_counter() + 60
    while (live.view is None or live.view.state.n_events <= n_events) and time.perf_counter() < deadline:
        await asyncio.sleep(0.05)
    assert live.view is not None
    return live.view.state.n_events
