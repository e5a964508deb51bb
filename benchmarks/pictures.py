"""Pictures of the app's screens as README shows them, from recorded runs: real ones, trained by `--record`.

    python -m benchmarks.pictures            draw docs/pictures/*.svg from what is stored in benchmarks/recorded
    python -m benchmarks.pictures --record   train the runs first (quickstart twice, about five minutes) and store them

A recorded run is its two TOML files and its event log, compressed. The app opens it as it opens any finished run; only
the machine's strip and what is free are those of whoever draws.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from gpuworkbench.runs.label import Label, write_label
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.later import LAUNCH, LIVE, is_a
from gpuworkbench.tui.services import Services
from gpuworkbench.tui.widgets.data_preview import DataPreview
from gpuworkbench.tui.widgets.launch_form import LaunchForm

RECORDED = Path(__file__).parent / "recorded"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
# run id -> what it is called, and what is set differently from the preset
RUNS = {
    "20261126-120000-quickstart-a1c3": ("", []),
    "20261126-121500-quickstart-7b20": ("a fifth of the rate", ["--set", "optimizer.lr=3e-4", "--steps", "600"]),
}
RICH, SMALL = (140, 40), (80, 24)
Keys = Callable[[Pilot[int], list[RunPaths]], Awaitable[object]]
# Textual names a font that a page has to fetch; a picture within a page may fetch nothing.
FONT = "'Fira Code', 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="train the runs anew first")
    parser.add_argument("--set", action="append", default=[], help="further settings of the recorded runs")
    parser.add_argument("--only", choices=SCREENS, action="append", help="draw these alone")
    options = parser.parse_args()
    if options.record:
        record(options.set)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("GPUWORKBENCH_CACHE_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            if name != "GPUWORKBENCH_CACHE_DIR":  # the form shows prepared data: use what is there
                os.environ[name] = str(Path(folder) / name.lower())
        os.environ.pop("NO_COLOR", None)
        runs = unpack(Path(folder) / "runs")
        asyncio.run(draw(Path(folder) / "runs", runs, options.only or list(SCREENS)))


def record(settings: list[str]) -> None:
    """Train the runs for real and store their logs."""
    further = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        for run_id, (_, changes) in RUNS.items():
            words = ["--headless", "--preset", "quickstart", "--runs-dir", folder, "--run-id", run_id]
            subprocess.run([sys.executable, "-m", "gpuworkbench", *words, *changes, *further], check=True)
            paths, stored = RunPaths(Path(folder) / run_id), RECORDED / run_id
            stored.mkdir(parents=True, exist_ok=True)
            for path in (paths.preset_toml, paths.run_toml):
                (stored / path.name).write_bytes(path.read_bytes())
            (stored / "events.jsonl.gz").write_bytes(gzip.compress(paths.events.read_bytes(), mtime=0))


def unpack(runs: Path) -> list[RunPaths]:
    """The recorded runs as run directories."""
    found = []
    for run_id, (name, _) in RUNS.items():
        paths = RunPaths(runs / run_id)
        paths.root.mkdir(parents=True)
        for stored in (RECORDED / run_id).iterdir():
            data = stored.read_bytes()
            is_packed = stored.suffix == ".gz"
            (paths.root / stored.name.removesuffix(".gz")).write_bytes(gzip.decompress(data) if is_packed else data)
        if name:
            write_label(paths, Label(name=name))
        found.append(paths)
    return found


async def draw(runs_dir: Path, runs: list[RunPaths], names: list[str]) -> None:
    """The pictures of these names."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in names:
        size, keys = SCREENS[name]
        app = WorkbenchApp(Services(runs_dir=runs_dir))
        async with app.run_test(size=size) as pilot:
            await asyncio.sleep(2.5)  # the processor's load needs two readings
            await keys(pilot, runs)
            await asyncio.sleep(0.5)
            svg = for_a_page(app.export_screenshot(title="gpuworkbench"))
        (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")
        print(f"docs/pictures/{name}.svg  {len(svg) / 1000:.0f} kB")


def for_a_page(svg: str) -> str:
    """Without fonts from elsewhere, and with the fonts that a reader may have."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: Fira Code(, monospace)?;", f"font-family: {FONT};", svg)


async def home(pilot: Pilot[int], runs: list[RunPaths]) -> None:
    """As it opens."""


async def live(pilot: Pilot[int], runs: list[RunPaths]) -> None:
    """A finished run, its loss smoothed."""
    app = pilot.app
    assert isinstance(app, WorkbenchApp)
    app.open_run(runs[0])
    await until(pilot, lambda: is_a(app.screen, LIVE) and getattr(app.screen, "view", None) is not None)
    await asyncio.sleep(0.5)
    await pilot.press("right_square_bracket", "right_square_bracket")
    await asyncio.sleep(0.8)


async def compare(pilot: Pilot[int], runs: list[RunPaths]) -> None:
    """Both runs side by side, their losses smoothed."""
    app = pilot.app
    assert isinstance(app, WorkbenchApp)
    for paths in runs:
        app.services.marks.toggle(paths.root)
    app.compare_marked(None)
    await until(pilot, lambda: getattr(app.screen, "comparison", None) is not None)
    await pilot.press("right_square_bracket", "right_square_bracket")
    await asyncio.sleep(0.8)


async def launch(pilot: Pilot[int], runs: list[RunPaths]) -> None:
    """The form of quickstart with a layer more."""
    app = pilot.app
    assert isinstance(app, WorkbenchApp)
    app.open_preset("quickstart", None, cpu_twin=False)
    await until(pilot, lambda: is_a(app.screen, LAUNCH) and getattr(app.screen, "outlook", None) is not None)
    app.screen.query_one(LaunchForm).go_to("model.n_layer")
    for key in ("home", "ctrl+k", "6"):
        app.simulate_key(key)
        await asyncio.sleep(0.3)
    view = app.screen.query_one(DataPreview).view
    await until(pilot, lambda: app.screen.query_one(DataPreview).view.data is not None or bool(view.problem))


async def until(pilot: Pilot[int], condition: Callable[[], bool], timeout_s: float = 180) -> None:
    """Let the app run until it is so; not with the pilot's pause, which gives up on a slow machine."""
    for _ in range(int(timeout_s / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise SystemExit("the screen does not fill")


SCREENS: dict[str, tuple[tuple[int, int], Keys]] = {
    "home": (RICH, home),
    "live": (RICH, live),
    "live-small": (SMALL, live),
    "compare": (RICH, compare),
    "launch": (RICH, launch),
}

if __name__ == "__main__":
    main()
