"""What the screen says of phases, predictions and transfers, against numbers worked out here from the fixture."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gpuworkbench.runs.status import RunStatus
from gpuworkbench.tui.panels.timeline import TimelinePanel
from tests.fixtures.fake_nvml import FakeNvml, rtx5080
from tests.fixtures.hybrid_run import JUMPS, hybrid_run
from tests.tui.helpers import RICH, SMALL, live_is_filled, make_app, screen_lines, screen_text

HUGE = (200, 60)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NO_COLOR", raising=False)


async def test_the_timeline_marks_jumps_and_says_how_far_the_phase_is(tmp_path: Path) -> None:
    app = make_app(tmp_path / "runs", hybrid_run(tmp_path / "runs"))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        marks = [line for line in screen_lines(app)[3:8] if "▲" in line]
        assert re.sub(r"[^▲▽]", "", marks[0]) == "".join("▲" if accepted else "▽" for *_, accepted, _ in JUMPS)
        assert "6 accepted, 3 rejected" in screen_text(app)
        assert "predict 9 jumps" in screen_text(app)
        assert live.view is not None
        # The last full phase was to take 20 steps and has done none; 12 steps further it has done 12.
        state = msgspec.structs.replace(live.view.state, step=live.view.state.step + 12)
        report = msgspec.structs.replace(live.view.report, status=RunStatus.RUNNING)
        timeline = live.query_one(TimelinePanel)
        timeline.show(replace(live.view, state=state, report=report))
        await pilot.pause(0.1)
        assert re.search(r"now full █+[▏▎▍▌▋▊▉]?░+ 12/20", screen_text(app))


async def test_reliability_choices_and_what_happened(tmp_path: Path) -> None:
    app = make_app(tmp_path / "runs", hybrid_run(tmp_path / "runs"))
    async with app.run_test(size=HUGE) as pilot:
        await live_is_filled(pilot)
        await pilot.press("5")
        await pilot.pause(0.2)
        text = screen_text(app)
        brier = sum((confidence - accepted) ** 2 for _, _, confidence, accepted, _ in JUMPS) / len(JUMPS)
        assert f"Brier score {brier:.3f}" in text
        middle = [accepted for _, _, confidence, accepted, _ in JUMPS if 0.6 <= confidence < 0.8]
        assert re.search(rf"0\.6 to 0\.8 +\S+ +{sum(middle) / len(middle):.0%} +{len(middle)}\b", text)
        assert re.search(r"0\.0 to 0\.2 +░+ +n/a +0\b", text)
        for predictor, steps in {(predictor, steps) for predictor, steps, *_ in JUMPS}:
            tries = [accepted for name, horizon, _, accepted, _ in JUMPS if (name, horizon) == (predictor, steps)]
            gain = 0.02 * sum(tries) / len(tries)  # a rejected jump is undone and gains nothing
            share = f"{sum(tries) / len(tries):.0%}"
            assert re.search(rf"{predictor} +{steps} +{len(tries)} +{share} +{gain:.4f}", text)
        assert re.search(r"64 +rejected +line_jump +4 +0\.42\*", text)
        assert "* exploring: the confidence gate was open" in text
        assert re.search(r"212 +full .* rolled back", text)
        assert "warning: prediction_error 3.100 over 2.500; forced full phase, shorter horizon" in text
        assert "controller  full: corrected" in text


async def test_transfers_have_bandwidth_sums_and_what_was_hidden(tmp_path: Path) -> None:
    app = make_app(tmp_path / "runs", hybrid_run(tmp_path / "runs"))
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        await pilot.press("6")
        await pilot.pause(0.2)
        live._draw_plots()
        await pilot.pause(0.1)
        text = screen_text(app)
        steps = [20 + 20 + number * 24 for number in range(len(JUMPS))]
        took = [0.04 + 0.002 * (step % 7) for step in steps]
        hidden = sum((0.80 + 0.02 * number) * seconds for number, seconds in enumerate(took)) / sum(took)
        rate = 940 / 1024 * len(steps) / sum(took)
        assert re.search(rf"offload in predict +27x .* {rate:.2f} GiB/s +{hidden:.0%}", text)
        assert re.search(rf"restore in correct +27x .* 0 B .* {rate:.2f} GiB/s +97%", text)
        assert re.search(r"all +54x", text)
        assert f"{940 / 1024 / took[-1]:.2f} GiB/s" in text  # the newest transfer's
        assert re.search(r"232 ← predictor\.slow, correct", text)


@pytest.mark.parametrize("has_card", [True, False])
async def test_the_limit_stands_beside_the_cards_memory(tmp_path: Path, has_card: bool) -> None:
    cards = FakeNvml(rtx5080()) if has_card else None
    app = make_app(tmp_path / "runs", hybrid_run(tmp_path / "runs"), nvml=cards)
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        for _ in range(100):
            if not has_card or (live.view is not None and live.view.card is not None):
                break
            await pilot.pause(0.05)
        live._draw_plots()
        await pilot.pause(0.1)
        assert ("14.50 GiB of 16.00 GiB" if has_card else "14.50 GiB, card n/a") in screen_text(app)


@pytest.mark.parametrize("panel", ["all", "5", "6"])
@pytest.mark.parametrize("size", [RICH, SMALL, HUGE], ids=["rich", "small", "huge"])
def test_pictures(tmp_path: Path, snap_compare: Callable[..., bool], size: tuple[int, int], panel: str) -> None:
    async def fill(pilot) -> None:  # type: ignore[no-untyped-def]
        await live_is_filled(pilot)
        if panel != "all":
            await pilot.press(panel)
            await pilot.pause(0.3)

    app = make_app(tmp_path / "runs", hybrid_run(tmp_path / "runs"))
    assert snap_compare(app, terminal_size=size, run_before=fill)
