"""Each screen with recorded runs: what it says, what its keys do, and that foreign text arrives harmless."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from textual.widgets import Input

from gpuworkbench.launch.spawn import TrainerProcess
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui.screens.dialogs import Choice, Confirm
from gpuworkbench.tui.screens.help import HelpScreen
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.widgets.preset_list import PresetList
from gpuworkbench.tui.widgets.run_table import RunTable
from tests.fixtures.fake_nvml import FakeNvml, rtx5080
from tests.fixtures.recorded_run import card_run, completed_run, crashed_run, hostile_run
from tests.tui.helpers import (
    RICH,
    SMALL,
    home_is_filled,
    live_is_filled,
    make_app,
    screen_lines,
    screen_text,
    until,
)

# C0 but newline, DEL, C1, bidirectional and other invisible format characters: none may reach a terminal.
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize("size", [RICH, SMALL])
async def test_home_has_its_presets_in_sight(tmp_path: Path, size: tuple[int, int]) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=size) as pilot:
        await home_is_filled(pilot)
        text = screen_text(app)
        assert re.search(r"quickstart .* fits", text)
        assert re.search(r"rtx5080_1b .*CPU twin", text)
        assert "RTX 5080 (16 GB)" in text
        assert "No CUDA card" in text
        assert "no run yet" in text


async def test_home_judges_presets_by_the_card_that_is_here(tmp_path: Path) -> None:
    app = make_app(tmp_path, nvml=FakeNvml(rtx5080()))
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        text = screen_text(app)
        assert "NVIDIA GeForce RTX 5080" in text
        assert "2.00 GiB of 16.00 GiB" in text
        assert "61 °C" in text
        assert re.search(r"rtx5080_gpt2_small_baseline +[\d.]+ GiB +fits", text)
        assert re.search(r"rtx5080_1b +[\d.]+ GiB +fits", text)


async def test_home_lists_runs_and_filters_them(tmp_path: Path) -> None:
    completed_run(tmp_path), crashed_run(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        home = await home_is_filled(pilot)
        text = screen_text(app)
        assert re.search(r"0001 .*✓ completed +400/400 +2\.\d{4} +[▁-█]{8}", text)
        assert re.search(r"0002 .*✗ crashed +250/400", text)
        await pilot.press("slash", *"crash")
        await pilot.pause(0.1)
        assert home.query_one(RunTable).row_count == 1
        assert home.query_one(PresetList).chosen is None
        await pilot.press("enter", "enter")
        assert (await live_is_filled(pilot)).paths.run_id.endswith("0002")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Home))
        await pilot.press("slash", "escape")
        assert home.query_one("#filter", Input).display is False
        await until(pilot, lambda: home.query_one(RunTable).row_count == 2)


async def test_unreadable_presets_are_named_and_refused(tmp_path: Path) -> None:
    presets = tmp_path / "config" / "gpuworkbench" / "presets"
    presets.mkdir(parents=True)
    (presets / "broken.toml").write_text("schema_version = ")
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        home = await home_is_filled(pilot)
        assert re.search(r"broken +not readable", screen_text(app))
        await pilot.press("slash", *"broken", "enter", "enter")
        await pilot.pause(0.2)
        assert app.screen is home
        assert any(notification.severity == "error" for notification in app._notifications)


@pytest.mark.parametrize("size", [RICH, SMALL])
async def test_a_completed_run(tmp_path: Path, size: tuple[int, int]) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=size) as pilot:
        live = await live_is_filled(pilot)
        text = screen_text(app)
        assert "✓ completed" in text
        assert "step 400/400" in text
        assert "train 2.3" in text
        assert "650.0 MiB" in text
        assert "400 steps are done" in text
        assert not any(0x2801 > ord(char) > 0x2800 for char in text)
        assert any(0x2800 < ord(char) < 0x2900 for char in text), "no curve"
        for action in ("toggle_pause", "checkpoint", "stop"):
            assert live.check_action(action, ()) is None
        assert live.check_action("resume", ()) is True  # further than its end


@pytest.mark.parametrize("size", [RICH, SMALL])
async def test_a_crashed_run_says_why_and_what_is_saved(tmp_path: Path, size: tuple[int, int]) -> None:
    app = make_app(tmp_path, crashed_run(tmp_path))
    async with app.run_test(size=size) as pilot:
        live = await live_is_filled(pilot)
        text = screen_text(app)
        assert "✗ crashed" in text
        assert "MemoryError: out of host memory — last checkpoint: step 200" in text
        assert live.check_action("resume", ()) is True
        assert live.check_action("stop", ()) is None


async def test_phases_transfers_and_predictions_of_a_card_run(tmp_path: Path) -> None:
    app = make_app(tmp_path, card_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        text = screen_text(app)
        for shown in ("warmup 30 steps", "predict 4 jumps and 47 steps", "40 to go", "4 accepted, 0 rejected"):
            assert shown in text
        assert "× predicted, not measured" in text
        assert re.search(r"offload in predict +4x +2.73 GiB +88%", text)
        assert re.search(r"150 → optimizer", text)
        assert re.search(r"limit +14.00 GiB", text)


async def test_why_nothing_is_offloaded(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        assert "computes on the CPU" in screen_text(app)


async def test_panels_alone_and_back_at_the_smallest_size(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=SMALL) as pilot:
        live = await live_is_filled(pilot)
        assert "Gradient norm" not in screen_text(app)
        await pilot.press("7")
        await pilot.pause(0.2)
        lines = screen_lines(app)
        assert any("Gradient norm and learning rate" in line for line in lines)
        assert not any("Messages" in line for line in lines)
        await pilot.press("escape")
        await pilot.pause(0.1)
        assert app.screen is live
        assert "Messages" in screen_text(app)
        await pilot.press("l")
        await pilot.pause(0.2)
        assert "log axis" in screen_text(app)


@pytest.mark.parametrize("size", [RICH, SMALL])
async def test_hostile_text_never_arrives_raw(tmp_path: Path, size: tuple[int, int]) -> None:
    paths = hostile_run(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=size) as pilot:
        await home_is_filled(pilot)
        home_lines = screen_lines(app)
        app.open_run(paths)
        await live_is_filled(pilot)
        shown = [*home_lines, *screen_lines(app)]
        for key in "12345678":
            await pilot.press(key)
            await pilot.pause(0.1)
            shown += screen_lines(app)
        assert not [line for line in shown if RAW.search(line)]
        assert any("[bold]no[/bold]" in line for line in shown), "markup was interpreted"


async def test_help_lists_the_keys_of_the_screen(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        await pilot.pause(0.1)
        text = screen_text(app)
        for words in ("Pause after this step", "Write a checkpoint", "Back to Home", "Leave; runs go on"):
            assert words in text
        await pilot.press("escape")
        assert isinstance(app.screen, Live)


@pytest.mark.parametrize("size", [RICH, SMALL])
async def test_q_leaves_with_code_0(tmp_path: Path, size: tuple[int, int]) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=size) as pilot:
        await home_is_filled(pilot)
        await pilot.press("q")
        await pilot.pause()
    assert app.return_code == 0


async def test_q_asks_about_a_run_started_here_and_leaves_it_by_default(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        paths = RunPaths(tmp_path / "20231114-221320-quickstart-0001")
        app.services.trainers.add(TrainerProcess(paths, process))
        async with app.run_test(size=RICH) as pilot:
            await live_is_filled(pilot)
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, Choice))
            await pilot.press("escape")
            await pilot.pause()
            assert isinstance(app.screen, Live)
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, Choice))
            await pilot.press("enter")
            await pilot.pause()
        assert app.return_code == 0
        assert process.poll() is None, "the trainer was ended"
        process.communicate(b"\n")
    assert not app.services.trainers.live()


async def test_any_keys_and_sizes_do_no_harm(tmp_path: Path) -> None:
    runs = [make(tmp_path).root for make in (completed_run, crashed_run, hostile_run)]
    app = make_app(tmp_path)
    rng = random.Random(7)
    keys = ["tab", "down", "up", "slash", "x", "escape", "l", "z", "1", "4", "6", "question_mark", "p", "c", "pagedown"]
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        for round_ in range(60):
            if round_ % 4 == 0:
                await pilot.resize_terminal(rng.randint(1, 220), rng.randint(1, 70))
            if round_ % 15 == 7 and isinstance(app.screen, Home):
                app.open_run(RunPaths(rng.choice(runs)))
            await pilot.press(rng.choice(keys))
        assert not isinstance(app.screen, Confirm)
