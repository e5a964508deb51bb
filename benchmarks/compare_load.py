"""How long eight long runs take to compare: on the command line's path, and until the app's screen is complete.

    python -m benchmarks.compare_load [--events 1000000] [--runs 8] [--rounds 5]

"First" is without any index: every log is read once, and leaves an index in the user's cache. "Again" is through
those indexes. "Tables" is what is computed anew when the axis or the target is changed. No training, no card.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._record import environment, write_result
from benchmarks.event_replay import write_log
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.compare import compare, load
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.screens.compare import CompareScreen
from gpuworkbench.tui.services import Services
from tests.fixtures.recorded_run import new_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="events of each run")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPUWORKBENCH_CACHE_DIR"] = str(Path(folder) / "cache")
        paths = [
            new_run(Path(folder) / "runs", f"20231114-2213{n:02d}-quickstart-{n:04d}") for n in range(options.runs)
        ]
        for one in paths:
            write_log(one.events, options.events)
        results = measure(paths, options.rounds)
    numbers = {"runs": options.runs, "events": options.events, "rounds": options.rounds}
    path = write_result(
        "compare_load", {"environment": environment("textual", "plotext", "msgspec"), **numbers, "results": results}
    )
    print(path.read_text())


def measure(paths: list[RunPaths], rounds: int) -> dict[str, Any]:
    """Seconds of each part; medians where it can be repeated."""
    started = time.perf_counter()
    runs = [load(one) for one in paths]
    first_s = time.perf_counter() - started
    again, tables, screen = [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        runs = [load(one) for one in paths]
        again.append(time.perf_counter() - started)
        started = time.perf_counter()
        compare(runs, "time", branches=())
        tables.append(time.perf_counter() - started)
        screen.append(asyncio.run(open_screen(paths)))
    return {
        "first_s": round(first_s, 3),
        "again_s": round(statistics.median(again), 4),
        "tables_s": round(statistics.median(tables), 4),
        "screen_complete_s": round(statistics.median(screen), 3),
    }


async def open_screen(paths: list[RunPaths]) -> float:
    """Seconds from the key to the complete compare screen."""
    app = WorkbenchApp(Services(runs_dir=paths[0].root.parent))
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.pause()
        for one in paths:
            app.services.marks.toggle(one.root)
        started = time.perf_counter()
        app.compare_marked(None)
        while True:
            await pilot.pause(0.005)
            screen = app.screen
            if isinstance(screen, CompareScreen) and screen.view is not None and not screen.view.is_reading:
                return time.perf_counter() - started


if __name__ == "__main__":
    main()
