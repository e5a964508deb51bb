"""Runs and Compare from the keyboard (and the mouse): sort, filter, mark, name, delete, overlay, export."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from gpuworkbench.runs.label import read_label
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.compare import compare, load
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.screens.ask_loss import AskLoss
from gpuworkbench.tui.screens.compare import CompareScreen
from gpuworkbench.tui.screens.dialogs import Confirm
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.label_edit import LabelEdit
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.screens.runs import Runs
from gpuworkbench.tui.widgets.compare_plot import ComparePlot
from gpuworkbench.tui.widgets.run_browser import RunBrowser
from gpuworkbench.tui.widgets.run_table import RunTable
from tests.fixtures.event_logs import LogBuilder
from tests.fixtures.recorded_run import hostile_run, new_run
from tests.fixtures.run_family import run_family, variant_run
from tests.tui.helpers import RICH, SMALL, home_is_filled, make_app, screen_lines, screen_text, until

RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
HUGE = (200, 60)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


async def runs_are_listed(pilot: Pilot[int]) -> Runs:
    """From Home to the filled list of runs."""
    await home_is_filled(pilot)
    await pilot.press("r")
    await until(pilot, lambda: isinstance(pilot.app.screen, Runs) and pilot.app.screen.rows is not None, "runs")
    await pilot.pause(0.1)
    assert isinstance(pilot.app.screen, Runs)
    return pilot.app.screen


async def runs_are_compared(pilot: Pilot[int], runs: list[RunPaths]) -> CompareScreen:
    """The compare screen of these runs, filled."""
    app = pilot.app
    assert isinstance(app, WorkbenchApp)
    for paths in runs:
        assert app.services.marks.toggle(paths.root)
    app.compare_marked(None)
    await until(pilot, lambda: isinstance(app.screen, CompareScreen), "compare screen")
    screen = app.screen
    assert isinstance(screen, CompareScreen)
    await until(pilot, lambda: screen.view is not None and not screen.view.is_reading and screen.comparison, "tables")
    await pilot.pause(0.1)
    return screen


def order(table: RunBrowser) -> list[str]:
    """The last four characters of the runs' ids, from the top."""
    return [str(key.value)[-4:] for key in table.rows]


async def test_runs_are_sorted_by_key_and_by_a_click(tmp_path: Path) -> None:
    run_family(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        runs = await runs_are_listed(pilot)
        table = runs.query_one(RunBrowser)
        assert order(table) == ["bbbb", "0002", "aaaa", "0001"]  # newest first
        await pilot.press("s")
        assert order(table) == ["0001", "0002", "bbbb", "aaaa"]  # by name; aaaa is called "higher rate"
        await pilot.press("S")
        assert order(table) == ["aaaa", "bbbb", "0002", "0001"]
        header = screen_lines(app)[table.region.y + 1]
        await pilot.click(offset=(header.index("loss") + 1, table.region.y + 1))
        await pilot.pause(0.1)
        losses = [load(RunPaths(Path(str(key.value)))).state.loss or 0 for key in table.rows]
        assert losses == sorted(losses)
        assert "loss ▲" in screen_text(app)
        await pilot.click(offset=(header.index("loss") + 1, table.region.y + 1))
        await pilot.pause(0.1)
        assert "loss ▼" in screen_text(app)


async def test_the_filter_narrows_the_list_and_the_detail_tells_the_rest(tmp_path: Path) -> None:
    run_family(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        runs = await runs_are_listed(pilot)
        assert "└─ 20231115-000000-quickstart-bbbb" in screen_text(app)
        await pilot.press("slash", *"higher")
        await pilot.pause(0.1)
        assert order(runs.query_one(RunBrowser)) == ["aaaa"]
        text = screen_text(app)
        assert "1 of 4 runs" in text
        assert "with less" in text
        await pilot.press("enter", "enter")
        await until(pilot, lambda: isinstance(app.screen, Live))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is runs, "the list again")
        await pilot.press("escape")
        await pilot.pause(0.1)
        assert len(order(runs.query_one(RunBrowser))) == 4
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Home), "home")


@pytest.mark.parametrize("on_home", [True, False])
async def test_a_name_and_notes(tmp_path: Path, on_home: bool) -> None:
    first = run_family(tmp_path)[0]
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        if on_home:
            await home_is_filled(pilot)
            app.screen.query_one(RunTable).focus()
            await pilot.pause()
        else:
            await runs_are_listed(pilot)
        await pilot.press("end", "e")
        await until(pilot, lambda: isinstance(app.screen, LabelEdit), "dialog")
        await pilot.press("escape")
        await pilot.pause()
        assert read_label(first).name == ""
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, LabelEdit), "dialog")
        await pilot.press(*"base", "tab", *"as it was", "ctrl+s")
        await until(pilot, lambda: read_label(first).name == "base", "label on the disk")
        assert read_label(first).notes == "as it was"
        await until(pilot, lambda: re.search(r"base +✓ completed", screen_text(app)), "name in the list")


async def test_an_earlier_label_is_what_the_dialog_shows(tmp_path: Path) -> None:
    variant_run(tmp_path, "20231114-230000-quickstart-aaaa", rate=2.0, name="higher rate")
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await runs_are_listed(pilot)
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, LabelEdit), "dialog")
        assert app.screen.query_one("#name", Input).value == "higher rate"
        assert app.screen.query_one("#notes", TextArea).text == "seed 2\nwith less"
        text = screen_text(app)
        assert "Save" in text
        assert "ctrl+s" in text


async def test_deletion_asks_and_no_is_the_default(tmp_path: Path) -> None:
    first = run_family(tmp_path)[0]
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        runs = await runs_are_listed(pilot)
        await pilot.press("end", "space", "end", "d")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "question")
        assert first.run_id in screen_text(app)
        await pilot.press("enter")
        await pilot.pause(0.1)
        assert first.root.is_dir()
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "question")
        await pilot.press("y")
        await until(pilot, lambda: len(order(runs.query_one(RunBrowser))) == 3, "a shorter list")
        assert not first.root.exists()
        assert not app.services.marks.runs()


async def test_a_run_that_trains_is_not_deleted(tmp_path: Path) -> None:
    first = run_family(tmp_path)[0]
    lock = RunLock(first.lock)
    lock.acquire()
    app = make_app(tmp_path)
    try:
        async with app.run_test(size=RICH) as pilot:
            await home_is_filled(pilot)
            app.screen.query_one(RunTable).focus()
            await pilot.press("end", "d")
            await until(pilot, lambda: isinstance(app.screen, Confirm), "question")
            await pilot.press("y")
            await until(pilot, lambda: any(n.severity == "error" for n in app._notifications), "refusal")
            assert first.root.is_dir()
    finally:
        lock.release()


async def test_marks_are_shared_by_the_lists_and_bounded(tmp_path: Path) -> None:
    for number in range(10):
        new_run(tmp_path, f"20231114-2213{number:02d}-quickstart-{number:04d}")
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        await runs_are_listed(pilot)
        await pilot.press("c")
        await pilot.pause()
        assert any("mark two" in n.message for n in app._notifications)
        await pilot.press("home", *["space"] * 9)
        await pilot.pause(0.1)
        assert len(app.services.marks.runs()) == 8
        text = screen_text(app)
        for marker in "●■▲◆○□△◇":
            assert f"{marker} 2023" in text
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Home), "home")
        await until(pilot, lambda: "● 2023" in screen_text(app), "marks on Home")


@pytest.mark.parametrize("size", [RICH, SMALL, HUGE])
async def test_marked_runs_are_overlaid(tmp_path: Path, size: tuple[int, int]) -> None:
    family = run_family(tmp_path)
    app = make_app(tmp_path)
    async with app.run_test(size=size) as pilot:
        await runs_are_listed(pilot)
        screen = await runs_are_compared(pilot, family)
        text = screen_text(app)
        for words in ("● A quickstart-0001", "■ B higher rate", "▲ C quickstart-bbbb", "◆ D quickstart-0002"):
            assert words in text
        plot = screen.query_one(ComparePlot)
        drawn = plot.plotted.text.plain
        assert any(0x2800 < ord(char) < 0x2900 for char in drawn)
        assert all(marker in drawn for marker in "■▲◆")
        if size != SMALL:
            assert re.search(r"optimizer.lr +0.003 +0.006 +0.0015 +0.003", text)
            assert "└─ 20231115-000000-quickstart-bbbb" in text
            assert "validation loss at equal steps" in text
        best = compare([load(paths) for paths in family]).runs[0].best_val_loss
        assert f"{best:.4f}" in text
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Runs), "the list again")


async def test_what_the_compare_screen_draws_can_be_changed(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    family = run_family(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        screen = await runs_are_compared(pilot, family)
        plot = screen.query_one(ComparePlot)
        assert plot.plotted.high == 400
        await pilot.press("x")
        await pilot.pause(0.1)
        assert plot.plotted.high == 400 * 1024
        assert "validation loss at equal tokens" in screen_text(app)
        await pilot.press("x", "l", "right_square_bracket", "v")
        await pilot.pause(0.1)
        assert plot.plotted.high == pytest.approx(160, rel=0.01)  # the slowest run's seconds
        text = screen_text(app)
        assert "validation loss, by time, EMA 0.6, log axis" in text
        assert re.search(r"\d min|\d s", plot.plotted.text.plain)
        await pilot.press("plus", "plus", "left", "shift+left")
        await pilot.pause(0.1)
        assert screen.axis.window is not None
        assert screen.axis.cursor is not None
        await pilot.press("0")
        assert screen.axis.window is screen.axis.cursor is None
        await pilot.press("x", "left")
        await pilot.pause(0.1)
        values = [load(paths).state.best_eval for paths in family]
        assert re.search(r"A quickstart-0001 ✓ \d\.\d{4}", screen_text(app)), values


async def test_the_target_is_asked_for_and_checked(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    family = run_family(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        screen = await runs_are_compared(pilot, family)
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, AskLoss), "dialog")
        await pilot.press(*"-3", "enter")
        await pilot.pause(0.1)
        assert "is not a loss" in screen_text(app)
        await pilot.press("home", "delete", "enter")
        await until(pilot, lambda: app.screen is screen, "answer")
        await pilot.pause(0.1)
        assert screen.comparison is not None
        expected = compare([load(paths) for paths in family], "step", 3.0)
        assert [run.target_step for run in screen.comparison.runs] == [run.target_step for run in expected.runs]
        assert "to 3.0000" in screen_text(app)


async def test_parts_alone_and_the_export(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    family = run_family(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        screen = await runs_are_compared(pilot, family[:2])
        await pilot.press("4")
        await pilot.pause(0.1)
        assert "optimizer.lr" in screen_text(app)
        await pilot.press("escape")
        assert app.screen is screen
        await pilot.press("w")
        target = family[0].exports / "compare-2-runs-by-step.svg"
        await until(pilot, target.exists, "export")
        assert "higher rate, training" in target.read_text()
        await until(pilot, lambda: any(n.title == "exported" for n in app._notifications), "word of it")


async def test_a_live_run_grows_in_the_comparison(tmp_path: Path) -> None:
    family = run_family(tmp_path)
    live = new_run(tmp_path, "20231116-000000-quickstart-live")
    log = LogBuilder().start(run_id="live").tick(1).step(1, 8.0)
    log.write(live.events)
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        screen = await runs_are_compared(pilot, [family[0], live])
        assert screen.comparison is not None
        assert screen.comparison.runs[1].last_loss == 8.0
        log.tick(1).step(2, 7.5).write(live.events)
        await until(pilot, lambda: screen.comparison and screen.comparison.runs[1].last_loss == 7.5, "the new step")


async def test_hostile_runs_and_missing_logs_do_no_harm(tmp_path: Path) -> None:
    hostile, empty = hostile_run(tmp_path), new_run(tmp_path, "empty")
    broken = new_run(tmp_path, "broken")
    broken.events.mkdir()
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        await runs_are_listed(pilot)
        shown = screen_lines(app)
        await pilot.press("e")
        await pilot.pause(0.1)
        shown += screen_lines(app)
        await pilot.press("escape")
        await runs_are_compared(pilot, [hostile, empty, broken])
        await until(pilot, lambda: "regular" in screen_text(app) or "director" in screen_text(app), "the problem")
        for key in ("x", "x", "v", "v", "l", "left", "plus", "2", "2", "5"):
            await pilot.press(key)
            await pilot.pause(0.05)
            shown += screen_lines(app)
        assert not [line for line in shown if RAW.search(line)]


Filled = Callable[[Pilot[int]], Awaitable[object]]


@pytest.mark.parametrize("filled", [runs_are_listed, home_is_filled])
async def test_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: Filled) -> None:
    monkeypatch.setattr(WorkbenchApp, "launch", lambda *_, **__: None)
    app = make_app(tmp_path / "nothing")
    async with app.run_test(size=SMALL) as pilot:
        await filled(pilot)
        for key in ("tab", "space", "c", "e", "d", "s", "S", "enter"):
            await pilot.press(key)
        await pilot.pause(0.1)
        assert not isinstance(app.screen, Confirm | LabelEdit)
