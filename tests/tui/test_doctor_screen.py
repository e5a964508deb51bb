"""Doctor: checks as they come, anew, as text; nothing of it is left running."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from gpuworkbench.gpu.checks import Check
from gpuworkbench.gpu.doctor import PLACES, render
from gpuworkbench.gpu.torch_build import TorchProbe
from gpuworkbench.tui.screens import doctor
from gpuworkbench.tui.screens.doctor import DoctorScreen
from gpuworkbench.tui.screens.home import Home
from tests.fixtures.recorded_run import HOSTILE
from tests.tui.helpers import RICH, SMALL, home_is_filled, make_app, screen_text, until
from tests.tui.test_screens import RAW

LONG = "the build has no kernels for compute capability 12.0 of this card, and none that could be compiled for it"
CHECKS = {place: [Check(name=place, status="ok", detail=f"{place} is well")] for place in PLACES} | {
    "torch": [Check(name="torch", status="fail", detail=LONG, advice="pip install another " + "build " * 30)],
    "cards": [Check(name="card 0", status="n/a", detail=HOSTILE)],
    "caches": [Check(name="caches", status="warn", detail="not writable", advice="chmod u+w it")],
}


async def doctor_is_filled(pilot: Pilot[int]) -> DoctorScreen:
    await until(pilot, lambda: isinstance(pilot.app.screen, DoctorScreen) and pilot.app.screen.is_complete, "doctor")
    await pilot.pause(0.1)
    assert isinstance(pilot.app.screen, DoctorScreen)
    return pilot.app.screen


def recorded(runs_dir: Path, cache_dir: Path | None, probe: TorchProbe) -> Iterator[tuple[str, list[Check]]]:
    yield from CHECKS.items()


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "stream_checks", recorded)
    monkeypatch.setattr(doctor, "TorchProbe", lambda: TorchProbe([sys.executable, "-c", ""]))


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.usefixtures("_recorded")
async def test_each_check_with_what_to_do(tmp_path: Path, size: tuple[int, int]) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=size) as pilot:
        await home_is_filled(pilot)
        await pilot.press("h")
        screen = await doctor_is_filled(pilot)
        await pilot.press("home")
        text = screen_text(app)
        for words in ("✓ Python          Python is well", "✗ torch           the build has", "→ pip install another"):
            assert words in text
        assert "1 of 11 checks failed" in text
        await pilot.press("end")
        await until(pilot, lambda: "✓ terminal        terminal is well" in screen_text(app), "the end")
        text += screen_text(app)
        assert "! caches          not writable" in text
        assert "→ chmod u+w it" in text
        assert not [line for line in text.split("\n") if RAW.search(line)]
        await pilot.press("c")
        assert app.clipboard.count("\n") >= len(PLACES)
        assert "→" not in app.clipboard
        assert "\x1b" not in app.clipboard
        assert app.clipboard.splitlines()[0] == render(screen.checks, color=False).splitlines()[0]
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Home), "home")


async def test_they_are_shown_as_they_come_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[TorchProbe] = []

    def probe() -> TorchProbe:
        probes.append(TorchProbe([sys.executable, "-c", "import time; time.sleep(600)"]))
        return probes[-1]

    def slow(runs_dir: Path, cache_dir: Path | None, probe: TorchProbe) -> Iterator[tuple[str, list[Check]]]:
        yield "Python", CHECKS["Python"]
        probe.result()  # returns when the probe is killed
        yield "torch", CHECKS["torch"]

    monkeypatch.setattr(doctor, "TorchProbe", probe)
    monkeypatch.setattr(doctor, "stream_checks", slow)
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        await pilot.press("h")
        await until(pilot, lambda: "Python is well" in screen_text(app), "the first check")
        assert "… torch           asking" in screen_text(app)
        await pilot.press("r")
        await until(pilot, lambda: len(probes) == 2 and "Python is well" in screen_text(app), "the first check again")
        assert "✗ torch" not in screen_text(app), "what the first look found too late is shown"
        await pilot.press("escape")
    for asked in probes:
        assert asked._process is not None
        assert asked._process.wait(10) == -9
