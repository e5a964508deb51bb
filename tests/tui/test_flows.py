"""From the keyboard alone, with a real trainer: start, watch to the end, pause, save, stop, resume, crash."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from textual.pilot import Pilot

from gpuworkbench.errors import ExitCode, RunLockedError
from gpuworkbench.runs.delete import delete_run
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.status import RunStatus
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.screens.ask_steps import AskSteps
from gpuworkbench.tui.screens.dialogs import Confirm
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.screens.live_edit import LiveEdit
from gpuworkbench.tui.services import Services
from tests.fixtures.tiny_run import PRESET, Workspace, wait_until
from tests.tui.helpers import RICH, SMALL, home_is_filled, screen_text, until

LONG = PRESET.replace("max_steps = 40", "max_steps = 3000").replace("interval_steps = 7", "interval_steps = 1000")


def workspace_with_preset(root: Path, monkeypatch: pytest.MonkeyPatch, preset: str = PRESET) -> Workspace:
    """A workspace whose preset is the first on Home."""
    workspace = Workspace(root, preset)
    for name in ("GPUWORKBENCH_CACHE_DIR", "GPUWORKBENCH_RUNS_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "PYTHONPATH"):
        monkeypatch.setenv(name, workspace.environ[name])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    presets = root / "config" / "gpuworkbench" / "presets"
    presets.mkdir(parents=True)
    (presets / "a_tiny_one.toml").write_text(workspace.preset.read_text())
    return workspace


async def started(pilot: Pilot[int]) -> Live:
    """Start the first preset as it is, and wait for its first step on the live screen."""
    await home_is_filled(pilot)
    await until(pilot, lambda: "a_tiny_one" in screen_text(pilot.app), "preset")
    await pilot.press("s")
    await until(pilot, lambda: isinstance(pilot.app.screen, Live), "live screen", 60)
    live = pilot.app.screen
    assert isinstance(live, Live)
    await until(pilot, lambda: live.view is not None and live.view.state.step > 0, "first step", 60)
    return live


async def has_status(pilot: Pilot[int], live: Live, status: RunStatus, timeout_s: float = 60) -> float:
    """Wait for a status by evidence."""
    return await until(pilot, lambda: live.view is not None and live.view.status is status, status, timeout_s)


async def test_start_watch_to_the_end_and_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=SMALL) as pilot:
        live = await started(pilot)
        await has_status(pilot, live, RunStatus.COMPLETED)
        await until(pilot, lambda: "✓ completed" in screen_text(app))
        assert "step 40/40" in screen_text(app)
        assert live.view is not None
        assert live.view.state.loss == workspace.losses(live.paths.run_id)[40]
        await pilot.press("r")  # it is at its end: how far is it to go on?
        await until(pilot, lambda: isinstance(app.screen, AskSteps), "question")
        await pilot.press(*"40", "enter")
        await until(pilot, lambda: "'40' is not a step after 40" in screen_text(app), "refusal")
        await pilot.press("home", "ctrl+k", *"48", "enter")
        await until(pilot, lambda: live.view is not None and live.view.state.attempt == 2, "second attempt", 60)
        await until(pilot, lambda: live.view is not None and live.view.state.step == 48, "further steps", 60)
        await has_status(pilot, live, RunStatus.COMPLETED)
        await until(pilot, lambda: "step 48/48" in screen_text(app), "the new end")
        await pilot.press("q")  # nothing is live: no question
        await pilot.pause()
    assert app.return_code == ExitCode.OK


async def test_pause_save_stop_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch, LONG)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=RICH) as pilot:
        live = await started(pilot)
        await pilot.press("p")
        await has_status(pilot, live, RunStatus.PAUSED)
        await until(pilot, lambda: "‖ paused" in screen_text(app))
        await pilot.press("c")
        await until(pilot, lambda: live.view is not None and live.view.state.checkpoints, "checkpoint")
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("escape")
        await pilot.pause()
        assert live.view is not None
        assert live.view.status is RunStatus.PAUSED
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("enter")
        await has_status(pilot, live, RunStatus.STOPPED)
        stopped_at = live.view.state.step
        await pilot.press("r")
        await until(pilot, lambda: live.view is not None and live.view.state.attempt == 2, "second attempt", 60)
        await until(pilot, lambda: live.view is not None and live.view.state.step > stopped_at, "further steps", 60)
        os.kill(workspace.trainer_pid(live.paths.run_id), signal.SIGTERM)
        await has_status(pilot, live, RunStatus.STOPPED)
    assert [e["from_step"] for e in workspace.events(live.paths.run_id) if e["type"] == "run_resumed"] == [stopped_at]
    wait_until(lambda: not app.services.trainers.live(), what="collected trainer")


async def test_a_setting_is_changed_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch, LONG)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=SMALL) as pilot:
        live = await started(pilot)
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, LiveEdit), "dialog")
        await pilot.press(*"0.5", "enter")
        await until(pilot, lambda: any(n.title == "changed" for n in app._notifications), "acknowledgement", 60)
        assert live.view is not None
        assert [(e.key, e.new) for e in live.view.state.config_changes] == [("optimizer.lr_scale", 0.5)]
        assert probe_lock(live.paths.lock) is not None
        with pytest.raises(RunLockedError):
            delete_run(live.paths)
        workspace.kill_trainer(live.paths.run_id)
    wait_until(lambda: probe_lock(live.paths.lock) is None, what="free lock")
    wait_until(lambda: not app.services.trainers.live(), what="collected trainer")


async def test_a_killed_trainer_is_shown_within_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch, LONG)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=SMALL) as pilot:
        live = await started(pilot)
        await pilot.press("c")
        await until(pilot, lambda: live.view is not None and live.view.state.checkpoints, "checkpoint")
        workspace.kill_trainer(live.paths.run_id)
        took_s = await until(pilot, lambda: "✗ crashed" in screen_text(app), "word of the crash")
        assert took_s < 2.0
        assert live.view is not None
        saved = live.view.state.last_checkpoint_step
        assert f"last checkpoint: step {saved}; r goes on" in screen_text(app)
    wait_until(lambda: not app.services.trainers.live(), what="collected trainer")


async def test_leaving_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch, LONG)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=SMALL) as pilot:
        live = await started(pilot)
        await pilot.press("q")
        await pilot.pause(0.2)
        await pilot.press("enter")
        await pilot.pause()
    assert app.return_code == ExitCode.OK
    step = max(workspace.losses(live.paths.run_id))
    wait_until(lambda: max(workspace.losses(live.paths.run_id)) > step, what="further steps")
    workspace.kill_trainer(live.paths.run_id)
    wait_until(lambda: probe_lock(live.paths.lock) is None, what="free lock")
    wait_until(lambda: not app.services.trainers.live(), what="collected trainer")


async def test_a_refused_launch_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch)
    workspace.corpus.unlink()
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=SMALL) as pilot:
        home = await home_is_filled(pilot)
        await pilot.press("s")
        await until(pilot, lambda: any(n.severity == "error" for n in app._notifications), "refusal")
        assert app.screen is home
        assert "corpus.txt" in next(n.message for n in app._notifications if n.severity == "error")
    assert not workspace.runs.exists()
