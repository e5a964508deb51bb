"""A capped card is called a simulated card wherever the app shows a run on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpuworkbench.config.loader import Override
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.events import schema
from gpuworkbench.gpu.card import Card
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.form.outlook import Machine, look
from gpuworkbench.tui.screens.runs import Runs
from gpuworkbench.tui.widgets.outlook_panel import verdict_parts
from gpuworkbench.units import GIB
from tests.fixtures.event_logs import LogBuilder
from tests.tui.helpers import HOST, RICH, SMALL, home_is_filled, live_is_filled, make_app, screen_text, until

CAPPED = [Override("device.memory_limit_gib", 16, "--set")]


def capped_run(runs: Path) -> RunPaths:
    preset = load_preset("rtx5080_gpt2_small_baseline")
    paths = create_run(runs, "capped", preset.text, dump_toml(configure(preset, sets=CAPPED)))
    log = LogBuilder().start(
        run_id="capped", device="cuda:0", card="NVIDIA H200", simulated_card="simulated card, 16 GiB"
    )
    sizes = {"allocated_bytes": 4 * GIB, "reserved_bytes": 5 * GIB, "peak_allocated_bytes": 5 * GIB}
    log.step(1, 10.9).add(schema.Memory, 1, host_rss_bytes=GIB, limit_bytes=16 * GIB, **sizes).write(paths.events)
    return paths


@pytest.mark.parametrize("size", [SMALL, RICH])
async def test_the_live_screen_says_so_in_its_head_and_beside_the_limit(tmp_path: Path, size: tuple[int, int]) -> None:
    app = make_app(tmp_path, capped_run(tmp_path))
    async with app.run_test(size=size) as pilot:
        await live_is_filled(pilot)
        text = screen_text(app)
        assert "simulated card, 16 GiB" in text.splitlines()[0] + text.splitlines()[1]
        if size == RICH:
            assert re.search(r"limit +16.00 GiB \(simulated card\)", text)


async def test_the_lists_of_runs_mark_it(tmp_path: Path) -> None:
    capped_run(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        await until(pilot, lambda: "capped simulated" in screen_text(app), "a marked run on the home screen")
        app.push_screen(Runs())
        await until(pilot, lambda: "(simulated card, 16 GiB)" in screen_text(app), "the detail of the run")


def test_the_launch_form_s_plan_is_for_the_simulated_card() -> None:
    preset = load_preset("rtx5080_gpt2_small_baseline")
    card = Card(index=0, uuid="GPU-1", name="NVIDIA H200", compute_capability=(9, 0), memory_total_bytes=139 * GIB)
    machine = Machine((card,), HOST, {})
    outlook = look(configure(preset, sets=CAPPED), configure(preset), machine, has_cpu_twin=True)
    assert outlook.limit_bytes == 16 * GIB
    (_, sizes) = verdict_parts(outlook)
    assert str(sizes).endswith("of 16.00 GiB on the simulated card, 16 GiB")
