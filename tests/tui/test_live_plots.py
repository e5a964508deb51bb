"""Plots of the live screen: zoom, pan, axes, smoothing, one cursor for all panels, mouse, export, and live edits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from textual.events import MouseScrollUp
from textual.widgets import Input

from gpuworkbench.events import schema
from gpuworkbench.events.codec import encode
from gpuworkbench.gpu.card import Card
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.status import RunStatus
from gpuworkbench.tui.follower import card_of
from gpuworkbench.tui.panels.gradient import GradientPanel
from gpuworkbench.tui.panels.loss import LossPanel
from gpuworkbench.tui.panels.throughput import format_energy, mfu
from gpuworkbench.tui.plot_axis import PlotAxis
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.screens.live_edit import LiveEdit
from tests.fixtures.recorded_run import card_run, completed_run, cpu_history, loss_at, new_run
from tests.tui.helpers import RICH, SMALL, live_is_filled, make_app, screen_lines, screen_text, until

FULL = (1.0, 401.0)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


# The axis alone


def test_zooming_keeps_its_center_in_place_and_stays_inside() -> None:
    axis = PlotAxis().zoomed(0.5, FULL, 101.0)
    assert axis.window == (51.0, 251.0)  # 101 is at a quarter before and after
    assert axis.zoomed(0.5, FULL, 51.0).window == (51.0, 151.0)
    assert axis.zoomed(2.0, FULL).window is None
    assert PlotAxis().zoomed(0.5, FULL).window == (101.0, 301.0)
    assert PlotAxis(cursor=401.0).zoomed(0.5, FULL).window == (201.0, 401.0)
    deep = PlotAxis()
    for _ in range(200):
        deep = deep.zoomed(0.5, FULL)
    assert deep.window is not None
    assert deep.window[1] - deep.window[0] == pytest.approx(2.0)


def test_panning_stops_at_the_ends() -> None:
    axis = PlotAxis(window=(101.0, 201.0))
    assert axis.panned(50, FULL).window == (151.0, 251.0)
    assert axis.panned(-500, FULL).window == (1.0, 101.0)
    assert axis.panned(1e9, FULL).window == (301.0, 401.0)
    assert PlotAxis().panned(50, FULL).window is None


def test_the_cursor_begins_at_the_end_and_the_window_follows_it() -> None:
    axis = PlotAxis().scrubbed(-1, FULL)
    assert axis.cursor == 397.0  # a hundredth of what is shown, in whole steps
    assert axis.scrubbed(9, FULL).cursor == 401.0
    zoomed = PlotAxis(window=(1.0, 11.0)).scrubbed(-1, FULL)
    assert zoomed.cursor == 400.0
    assert zoomed.window == (391.0, 401.0)
    assert PlotAxis(by="time").scrubbed(-1, (0.0, 50.0)).cursor == pytest.approx(49.5)


# The screen


async def test_one_cursor_and_all_panels_say_what_was_so(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        await pilot.press(*["shift+left"] * 3)
        await pilot.pause(0.1)
        step = round(live.axis.cursor or 0)
        assert 250 < step < 300
        text = screen_text(app)
        assert f"train {loss_at(step):.4f}" in text
        assert f"at step {step}" in live.query_one(LossPanel).border_subtitle
        assert text.count(f"at step {step}") == 3  # loss, memory, throughput
        assert "┃" in screen_lines(app)[4]  # on the timeline
        norm = next(e for e in cpu_history("x", step).events if isinstance(e, schema.Step) and e.step == step).grad_norm
        assert f"norm {norm:.3f}" in str(live.query_one(GradientPanel).border_subtitle)
        await pilot.press("0")
        await pilot.pause(0.1)
        assert "at step" not in screen_text(app)


async def test_axes_and_smoothing_are_shared_and_shown(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        loss, gradient = live.query_one(LossPanel), live.query_one(GradientPanel)
        await pilot.press("left", "plus", "plus")
        window, cursor = live.axis.window, live.axis.cursor
        assert window is not None
        assert cursor is not None
        await pilot.press("x", "right_square_bracket", "l")
        await pilot.pause(0.1)
        assert live.axis.window == pytest.approx((window[0] * 1024, window[1] * 1024))
        assert live.axis.cursor == pytest.approx(cursor * 1024)
        assert (loss.plotted.low, loss.plotted.high) == (gradient.plotted.low, gradient.plotted.high)
        assert "by tokens, EMA 0.6, log axis, zoomed" in screen_text(app)
        await pilot.press("x")
        assert live.axis.cursor == pytest.approx(cursor * 0.2 + 4.5, abs=0.1)  # three validations of 1.5 s
        await pilot.press("minus", "minus", "minus")
        assert live.axis.window is None
        await pilot.press("comma", "full_stop", "left_square_bracket", "x")
        assert live.axis.by == "step"
        assert live.axis.smoothing == 0.0


async def test_the_mouse_zooms_pans_points_and_focuses(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        panel = live.query_one(GradientPanel)
        await pilot.click(panel, offset=(30, 3))
        await pilot.pause(0.1)
        assert app.focused is panel
        pointed = panel.plotted.x_at(30 - 2)  # a border and a cell of padding
        assert live.axis.cursor == pytest.approx(pointed)
        await pilot._post_mouse_events([MouseScrollUp], panel, offset=(30, 3))
        await pilot.pause(0.1)
        window = live.axis.window
        assert window is not None
        assert window[1] - window[0] == pytest.approx(399 * 0.8)
        assert panel.plotted.x_at(28) == pytest.approx(pointed, abs=2), "the place under the mouse moved"
        await pilot.mouse_down(panel, offset=(30, 3))
        await pilot.hover(panel, offset=(25, 3))
        await pilot.mouse_up(panel, offset=(25, 3))
        await pilot.pause(0.1)
        moved = live.axis.window
        assert moved is not None
        assert moved[0] > window[0]
        assert live.axis.cursor == pytest.approx(pointed), "a drag is no click"


async def test_the_panel_that_is_alone_is_exported(tmp_path: Path) -> None:
    paths = completed_run(tmp_path)
    app = make_app(tmp_path, paths)
    async with app.run_test(size=SMALL) as pilot:
        await live_is_filled(pilot)
        await pilot.press("7", "w")
        full = paths.exports / "gradient-step-00000400-full.csv"
        await until(pilot, full.exists, "export")
        await until(pilot, lambda: any(n.title == "exported" for n in app._notifications), "word of it")
        assert str(paths.exports) in next(n.message for n in app._notifications if n.title == "exported")
        assert len(full.read_text().splitlines()) == 801


async def test_the_panels_of_a_hybrid_run_on_a_card(tmp_path: Path) -> None:
    app = make_app(tmp_path, card_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        text = screen_text(app)
        for shown in ("4 of 4", "linear, 12 steps", "accepted at step 150", "bf16, 0 switches", "8 x 64 = 512 tokens"):
            assert shown in text
        assert live.view is not None
        config = live.view.config
        assert config is not None
        # 124M parameters at 16,000 tokens/s of the 112.6 TFLOP/s that the card's maker publishes
        expected = 16_000 * config.model.flops_per_token(64) / 112.6e12
        assert mfu(live.view, 16_000.0) == pytest.approx(expected, rel=1e-3)
        assert re.search(rf"MFU +{expected:.1%} of 113 TFLOP/s", text)
        assert format_energy(live.view) == "n/a"  # nobody trains it now
        running = msgspec.structs.replace(live.view.report, status=RunStatus.RUNNING)
        name = live.view.state.card
        cards = [Card(index=0, uuid="a", name=name, power_w=200.0), Card(index=1, uuid="b", name=name, power_w=70.0)]
        now = replace(live.view, report=running, card=cards[0])
        assert format_energy(now) == "80.00 at 200 W"
        assert format_energy(replace(live.view, card=cards[0])) == "n/a"  # what was read while it trained is old
        assert card_of(now, cards) is None  # the run does not say which
        assert card_of(now, cards[:1]) == cards[0]
        assert card_of(now, [Card(index=0, uuid="c", name="another card")]) is None
        await pilot.press(*["shift+left"] * 4)
        await pilot.pause(0.1)
        assert "accepted at step 78" in screen_text(app)


async def test_why_the_hybrid_panel_is_empty_and_what_a_cpu_does_not_have(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        text = screen_text(app)
        assert "The hybrid trainer is off" in text
        assert re.search(r"MFU +n/a", text)
        assert re.search(r"tokens/J +n/a", text)
        assert "cpu, 2 threads" in text


async def test_a_live_edit_is_checked_sent_and_its_answer_shown(tmp_path: Path) -> None:
    paths = new_run(tmp_path, "20231114-221320-quickstart-0001")
    log = cpu_history(paths.run_id, 40)
    log.write(paths.events)
    lock = RunLock(paths.lock)
    lock.acquire()
    app = make_app(tmp_path, paths)
    try:
        async with app.run_test(size=SMALL) as pilot:
            live = await live_is_filled(pilot)
            await pilot.press("e")
            await until(pilot, lambda: isinstance(app.screen, LiveEdit), "dialog")
            assert app.screen.query_one("#eval-interval_steps", Input).value == "100"
            await pilot.press("0", "enter")
            await pilot.pause(0.1)
            assert "is not a factor" in screen_text(app)
            await pilot.press("home", *"0.5", "delete", "tab", *"25", "enter")
            await until(pilot, lambda: app.screen is live, "answer")
            sent = [msgspec.json.decode(file.read_bytes()) for file in sorted(paths.control.glob("*.json"))]
            assert [command["args"] for command in sent] == [
                {"key": "optimizer.lr_scale", "value": 0.5},
                {"key": "eval.interval_steps", "value": 25},
            ]
            ids = [file.stem for file in sorted(paths.control.glob("*.json"))]
            log.add(schema.ConfigChanged, 40, key="optimizer.lr_scale", old=1.0, new=0.5)
            log.add(schema.ControlAck, 40, id=ids[0], command="set", ok=True, message="optimizer.lr_scale: 1 -> 0.5")
            log.add(schema.ControlAck, 40, id=ids[1], command="set", ok=False, message="not now")
            with paths.events.open("ab") as stream:
                stream.write(b"".join(encode(event) for event in log.events[-3:]))
            await until(pilot, lambda: any(n.title == "changed" for n in app._notifications), "acknowledgement")
            assert any(n.message == "not now" for n in app._notifications)
            await pilot.press("e")
            await until(pilot, lambda: isinstance(app.screen, LiveEdit), "dialog")
            assert app.screen.query_one("#optimizer-lr_scale", Input).value == "0.5"
            await pilot.press("escape")
            await pilot.pause()
            assert len(list(paths.control.glob("*.json"))) == 2
    finally:
        lock.release()


async def test_a_finished_run_cannot_be_edited(tmp_path: Path) -> None:
    app = make_app(tmp_path, completed_run(tmp_path))
    async with app.run_test(size=SMALL) as pilot:
        live = await live_is_filled(pilot)
        assert live.check_action("edit", ()) is None
        await pilot.press("e")
        await pilot.pause(0.1)
        assert isinstance(app.screen, Live)
