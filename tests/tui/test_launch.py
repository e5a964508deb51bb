"""The launch form from the keyboard: change, err, mend, save, start, wait in the queue; and with the mouse."""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Button, Input, OptionList, Select, Switch

from gpuworkbench.config.presets import load_preset, user_preset_dir
from gpuworkbench.data import Preview
from gpuworkbench.launch.resume import run_config
from gpuworkbench.launch.spawn import TrainerProcess, spawn_trainer
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.runs.turns import Turn, device_of
from gpuworkbench.tui import launching, preview_data
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.form.draft import Draft
from gpuworkbench.tui.preview_data import DataView, PreviewJob
from gpuworkbench.tui.screens.dialogs import Choice, Confirm
from gpuworkbench.tui.screens.help import HelpScreen
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.launch import LaunchScreen
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.screens.save_preset import SavePreset
from gpuworkbench.tui.services import Services
from gpuworkbench.tui.widgets.data_preview import DataPreview, token_edges
from gpuworkbench.tui.widgets.launch_form import LaunchForm
from gpuworkbench.tui.widgets.outlook_panel import OutlookPanel
from tests.fixtures.fake_nvml import FakeNvml, rtx5080
from tests.fixtures.recorded_run import HOSTILE, PRESETS
from tests.fixtures.tiny_run import wait_until
from tests.process.test_queue import queue as queue_a_run
from tests.tui.helpers import RICH, SMALL, home_is_filled, make_app, screen_lines, screen_text, until
from tests.tui.test_flows import LONG, has_status, workspace_with_preset
from tests.tui.test_screens import RAW

MEDIUM = str(PRESETS / "rtx5080_gpt2_small_baseline.toml")


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in (
        ("GPUWORKBENCH_CACHE_DIR", "cache"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_STATE_HOME", "state"),
    ):
        monkeypatch.setenv(name, str(tmp_path / folder))


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data panel waits for something that never comes."""
    monkeypatch.setattr(preview_data, "look_at_data", lambda config, progress: DataView(stage="quiet"))


async def form_of(pilot: Pilot[int], preset: str = "quickstart", **changes: object) -> LaunchScreen:
    """The form of a preset, with the machine known."""
    await until(pilot, lambda: isinstance(pilot.app.screen, Home), "home")
    draft = Draft(load_preset(preset))
    app = pilot.app
    assert isinstance(app, WorkbenchApp)
    app.push_screen(LaunchScreen(replace(draft, **changes)))
    await until(pilot, lambda: isinstance(app.screen, LaunchScreen) and app.screen.outlook is not None, "form")
    screen = app.screen
    assert isinstance(screen, LaunchScreen)
    await pilot.pause(0.1)
    return screen


async def type_into(pilot: Pilot[int], screen: LaunchScreen, key: str, text: str) -> None:
    """Replace a field's text as a person would."""
    assert screen.query_one(LaunchForm).go_to(key)
    await pilot.press("home", "ctrl+k", *text)
    await pilot.pause()


async def test_enter_twice_starts_the_preset_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen), "form")
        assert isinstance(app.screen.focused, Button)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Live), "live screen", 60)
        live = app.screen
        assert isinstance(live, Live)
        await has_status(pilot, live, RunStatus.COMPLETED)
        assert run_config(live.paths).train.max_steps == 40
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Home), "home, not the form")


async def test_change_err_mend_save_and_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All with keys: the waterfall follows, an error stands at its field, and the run is what the form said."""
    workspace = workspace_with_preset(tmp_path, monkeypatch)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen) and app.screen.outlook is not None, "form")
        screen = app.screen
        assert isinstance(screen, LaunchScreen)
        await until(pilot, lambda: "training" in screen_text(app) and "│ ends a token" in screen_text(app), "data", 60)
        assert re.search(r"vocabulary 257", screen_text(app))
        assert "T│h│e│" in screen_text(app)

        await pilot.press("slash", *"n_embd", "enter")
        await until(pilot, lambda: screen.query_one(LaunchForm).focused_row is not None, "focus")
        await pilot.press("home", "ctrl+k", *"64")
        await until(pilot, lambda: re.search(r"● n_embd +64 +was 32", screen_text(app)), "mark")
        assert re.search(r"weights .*\+\d", screen_text(app))
        assert screen.outlook is not None
        assert screen.outlook.config.model.n_embd == 64

        await pilot.press("backspace", "5")
        wrong = "2 heads do not divide n_embd = 65; choose n_embd as a multiple of n_head"
        await until(pilot, lambda: wrong in screen_text(app), "error")
        assert "1 not valid" in screen_text(app)
        await pilot.press("ctrl+g")
        await pilot.pause(0.2)
        assert app.screen is screen, "a wrong form was started"
        await type_into(pilot, screen, "model.n_embd", "64")
        await until(pilot, lambda: "not valid" not in screen_text(app), "valid form")

        await type_into(pilot, screen, "train.max_steps", "3")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, SavePreset), "dialog")
        await pilot.press("home", "ctrl+k", *"a tiny")
        await pilot.press("enter")
        await pilot.pause()
        await until(pilot, lambda: "is no preset name" in screen_text(app), "refusal of the name")
        await pilot.press("home", "ctrl+k", *"a_tiny_one", "enter")
        again = "your preset a_tiny_one is replaced: save once more to do so"
        await until(pilot, lambda: again in screen_text(app), "question")
        await pilot.press("home", "ctrl+k", *"my_own", "enter")
        await until(pilot, lambda: app.screen is screen, "form again")
        mine = load_preset("my_own")
        assert (mine.config.model.n_embd, mine.config.train.max_steps) == (64, 3)

        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, Live), "live screen", 60)
        live = app.screen
        assert isinstance(live, Live)
        await has_status(pilot, live, RunStatus.COMPLETED)
        config = run_config(live.paths)
        assert (config.model.n_embd, config.train.max_steps, config.preset) == (64, 3, "a_tiny_one")
        await pilot.press("escape")
        home = await home_is_filled(pilot)
        await until(pilot, lambda: home.view is not None and "my_own" in screen_text(app), "own preset on Home")
        assert "Own presets" in screen_text(app)


@pytest.mark.usefixtures("no_data")
async def test_fields_by_kind(tmp_path: Path) -> None:
    """A list, a switch, a reset, and the twin's own values."""
    app = make_app(tmp_path, nvml=FakeNvml(rtx5080()))
    async with app.run_test(size=RICH) as pilot:
        screen = await form_of(pilot, MEDIUM)
        form = screen.query_one(LaunchForm)
        assert isinstance(form.rows["schedule.name"].editor, Select)
        assert isinstance(form.rows["checkpoint.keep_best"].editor, Switch)
        form.go_to("schedule.name")
        await pilot.press("enter")
        await pilot.pause()
        options = form.rows["schedule.name"].editor.query_one(OptionList)
        assert options.option_count == len(form.rows["schedule.name"].item.choices)
        await pilot.press("up", "enter")
        await pilot.pause()
        assert screen.checked.config is not None
        assert screen.checked.config.schedule.name != screen.draft.preset.config.schedule.name
        form.go_to("memory.chunked_cross_entropy")
        before = screen.outlook
        await pilot.press("space")
        await pilot.pause()
        assert screen.outlook != before
        assert re.search(r"● chunked_cross_entropy +\S* +o[nf]f? +was (true|false)", screen_text(app))
        await pilot.press("r")
        await pilot.pause()
        assert screen.outlook == before
        await pilot.press("t")
        await pilot.pause()
        assert screen.checked.config.is_cpu_twin
        assert "CPU twin" in screen_lines(app)[0]
        assert form.rows["train.max_steps"].text == str(screen.draft.preset.config.cpu_twin["train"]["max_steps"])
        assert screen.checked.overrides == ()
        await pilot.press("t")
        await pilot.pause()
        assert len(screen.checked.overrides) == 1
        await type_into(pilot, screen, "train.threads", "x")
        await pilot.press("ctrl+r")
        await pilot.pause()
        assert form.rows["train.threads"].text == ""
        assert screen.checked.is_valid


@pytest.mark.usefixtures("no_data")
async def test_up_and_down_go_through_the_fields_and_say_what_they_do(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        screen = await form_of(pilot)
        form = screen.query_one(LaunchForm)
        names = []
        for _ in range(20):
            await pilot.press("down")
            row = form.focused_row
            assert row is not None
            names.append(row.item.name)
        assert names == list(form.rows)[:20]
        await pilot.pause()
        assert row is not None
        assert row.item.key.documentation[:30] in screen_text(app)
        assert any(line.startswith(f"│   {row.item.label} ") for line in screen_lines(app)), "not scrolled into sight"
        await pilot.press("pageup")
        assert form.focused_row is form.rows[names[-9]]
        await pilot.press("pagedown", *["pagedown"] * (len(form.rows) // 8))
        assert form.focused_row is list(form.rows.values())[-1]


@pytest.mark.usefixtures("no_data")
async def test_the_filter_leaves_what_matches(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        screen = await form_of(pilot)
        form = screen.query_one(LaunchForm)
        await pilot.press("slash", *"learning rate")
        await pilot.pause()
        assert [row.item.name for row in form.shown] == ["optimizer.lr", "schedule.batch_lr_scaling"]
        await pilot.press("x")
        await pilot.pause()
        assert form.shown == []
        assert "no field matches" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert len(form.shown) == len(form.rows)
        assert app.screen is screen
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Home), "home")


@pytest.mark.usefixtures("no_data")
async def test_other_fields_for_another_model(tmp_path: Path) -> None:
    """A model family brings keys of its own: the rows are made anew, in their order, and marked as before."""
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        screen = await form_of(pilot, changes={"train.max_steps": "7"})
        form = screen.query_one(LaunchForm)
        fewer = [item for item in screen.checked.fields if item.section in ("run", "data")]
        assert form.fits(screen.checked.fields)
        await form.rebuild(fewer, screen._texts())
        assert form.fits(fewer)
        assert list(form.rows) == [item.name for item in fewer]
        screen._show()
        await until(pilot, lambda: re.search(r"● train.max_steps +7 +was 1000", screen_text(app)), "mark")
        await form.rebuild(screen.checked.fields, screen._texts())
        assert list(form.rows) == [item.name for item in screen.checked.fields]


@pytest.mark.usefixtures("no_data")
async def test_changes_are_kept_while_the_app_lives(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        screen = await form_of(pilot)
        await type_into(pilot, screen, "train.max_steps", "7")
        await pilot.press("escape", "escape")
        await until(pilot, lambda: isinstance(app.screen, Home), "home")
        app.open_preset("quickstart", None, cpu_twin=False)
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen), "form")
        await pilot.pause(0.1)
        assert re.search(r"● train.max_steps +7 +was 1000", screen_text(app))


@pytest.mark.usefixtures("no_data")
async def test_with_the_mouse(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        screen = await form_of(pilot)
        form = screen.query_one(LaunchForm)
        row = form.rows["model.n_layer"]
        assert await pilot.click(row.editor)
        await pilot.press("end", "5")
        await pilot.pause()
        assert screen.checked.config is not None
        assert screen.checked.config.model.n_layer == 35
        assert await pilot.click("#save")
        await until(pilot, lambda: isinstance(app.screen, SavePreset), "dialog")
        assert await pilot.click("#cancel")
        await until(pilot, lambda: app.screen is screen, "form again")
        assert not user_preset_dir().exists()
        switch = form.rows["checkpoint.keep_best"]
        form.scroll_to_widget(switch, animate=False)
        await pilot.pause(0.1)
        assert await pilot.click(switch.editor)
        await pilot.pause()
        assert screen.checked.config.checkpoint.keep_best is False


@pytest.mark.usefixtures("no_data")
async def test_views_where_only_one_has_room(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=SMALL) as pilot:
        screen = await form_of(pilot)
        shown = []
        for _ in range(4):
            widgets = (screen.query_one(kind) for kind in (LaunchForm, OutlookPanel, DataPreview))
            shown.append([bool(widget.region.area) for widget in widgets])
            await pilot.press("v")
            await pilot.pause(0.05)
        assert shown == [[True, False, False], [False, True, False], [False, False, True], [True, False, False]]
        await pilot.resize_terminal(*RICH)
        await pilot.pause(0.1)
        assert screen.check_action("view", ()) is False
        assert all(screen.query_one(kind).region.area for kind in (LaunchForm, OutlookPanel, DataPreview))


@pytest.mark.usefixtures("no_data")
async def test_what_does_not_fit_is_asked_about(tmp_path: Path) -> None:
    app = make_app(tmp_path, nvml=FakeNvml(rtx5080()))
    async with app.run_test(size=RICH) as pilot:
        screen = await form_of(pilot, MEDIUM)
        await type_into(pilot, screen, "model.n_layer", "480")
        assert "does not fit" in screen_text(app)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "question")
        assert "predicted to need" in screen_text(app)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen, "form again")
    assert not list(tmp_path.glob("2*"))


async def test_data_errors_and_refusals_stand_at_their_field(tmp_path: Path) -> None:
    """A path that is not there: one line in the panel while typing, and the field has the keys after a start."""
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        screen = await form_of(pilot, changes={"data.source": "synthetic", "data.tokenizer": "byte"})
        await type_into(pilot, screen, "data.source", "/not/there.txt")
        await until(pilot, lambda: screen.query_one(DataPreview).view.problem, "problem", 60)
        assert "/not/there.txt" in screen.query_one(DataPreview).view.problem
        assert "not available" in screen_text(app)
        screen.query_one("#start").focus()
        await pilot.press("enter")
        await until(pilot, lambda: bool(screen.refusal), "refusal", 60)
        assert "/not/there.txt" in screen_text(app)
        row = screen.query_one(LaunchForm).focused_row
        assert row is None or row.item.section == "data"
        await type_into(pilot, screen, "data.source", "synthetic")
        assert screen.refusal == ""


async def test_only_the_newest_data_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that was called off ends at its next sign of progress and says nothing more."""
    said: list[object] = []
    steps: list[str] = []

    def endless(config: object, progress: object) -> DataView:
        assert callable(progress)
        while True:
            steps.append("still looking")
            progress(f"step {len(steps)}", None)

    monkeypatch.setattr(preview_data, "look_at_data", endless)
    job = PreviewJob(1, load_preset("quickstart").config, said.append)
    job.start()
    wait_until(lambda: len(said) > 3, what="progress")
    job.call_off()
    job.join(30)
    n_said, n_steps = len(said), len(steps)
    assert not job._thread.is_alive()
    assert (len(said), len(steps)) == (n_said, n_steps)


def test_tokens_have_edges_and_nothing_raw() -> None:
    preview = Preview("", (), ("The", " ", "list\n", "\n\n", HOSTILE, "\ufffd"))
    text = token_edges(preview.decoded).plain
    assert text.startswith("The│ │list␊│\n␊\n␊│\n")
    assert text.count("│") == 6
    assert not RAW.search(text)


@pytest.mark.usefixtures("no_data")
async def test_hostile_presets_and_pastes_arrive_harmless(tmp_path: Path) -> None:
    path = tmp_path / "hostile.toml"
    text = (
        (PRESETS / "quickstart.toml").read_text().replace('prompt = "This module"', 'prompt = "\\u001b[31m\\u202ered"')
    )
    path.write_text(re.sub('description = ".*"', 'description = "\\\\u009b2J[bold]no[/bold]"', text))
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        screen = await form_of(pilot, str(path))
        assert screen.query_one(LaunchForm).go_to("sample.prompt")
        await pilot.pause(0.1)
        lines = screen_lines(app)
        editor = screen.query_one(LaunchForm).rows["sample.prompt"].editor
        assert isinstance(editor, Input)
        editor.value = "\x1b]52;c;aGk=\x07"
        await pilot.pause(0.1)
        lines += screen_lines(app)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, SavePreset), "dialog")
        await pilot.pause(0.1)
        lines += screen_lines(app)
        assert not [line for line in lines if RAW.search(line)]
        assert any("[bold]no[/bold]" in line for line in lines)


@pytest.mark.usefixtures("no_data")
async def test_help_and_palette_know_the_forms_keys(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    async with app.run_test(size=RICH) as pilot:
        screen = await form_of(pilot)
        commands = {command.title for command in app.get_system_commands(screen)}
        assert {"Start", "Find", "Twin", "Save as", "Back"} <= commands
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "help")
        await pilot.pause(0.1)
        for words in ("Start the run", "Save as a preset of your own", "The focused field as the preset has it"):
            assert words in screen_text(app)


@pytest.mark.usefixtures("no_data")
async def test_a_busy_card_says_who_has_it_and_offers_its_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(rtx5080())
    device = device_of("cuda", rtx5080()["nvmlDeviceGetUUID"], 0)
    paths = create_run(tmp_path / "runs", "the-other-run", b"", b"")
    lock = RunLock(paths.lock)
    lock.acquire()
    turn = Turn(paths, device)
    turn.take()
    app = make_app(tmp_path / "runs", nvml=nvml)
    asked = []
    monkeypatch.setattr(type(app), "launch", lambda self, request, label, draft=None: asked.append(request))
    try:
        async with app.run_test(size=RICH) as pilot:
            screen = await form_of(pilot, MEDIUM)
            assert "in use by the-other-run" in screen_text(app)
            app._again = asked.append
            app._ask_to_queue(f"the card is in use by the-other-run (process {os.getpid()})")
            await until(pilot, lambda: isinstance(app.screen, Choice), "question")
            await pilot.press("enter")
            await until(pilot, lambda: app.screen is screen, "form again")
            assert asked == ["queue"]
            screen.query_one(LaunchForm).go_to("run.queue")
            await pilot.press("space")
            await pilot.pause()
            await pilot.press("s")
            await pilot.pause()
            assert asked[1].queue
    finally:
        turn.end()
        lock.release()


async def test_a_queued_run_outlives_the_app_and_follows_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_with_preset(tmp_path, monkeypatch, LONG)
    queue_a_run(workspace, "first", "--steps", "100000000", "--set", "checkpoint.interval_steps=0")
    wait_until(lambda: len(workspace.losses("first")) > 0, what="first step")
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen), "form")
        screen = app.screen
        assert isinstance(screen, LaunchScreen)
        await type_into(pilot, screen, "train.max_steps", "4")
        screen.query_one(LaunchForm).go_to("run.queue")
        await pilot.press("space", "s")
        await until(pilot, lambda: isinstance(app.screen, Live), "live screen", 60)
        live = app.screen
        assert isinstance(live, Live)
        await has_status(pilot, live, RunStatus.QUEUED)
        await until(pilot, lambda: "waiting for first to end" in screen_text(app), "reason")
        assert "◌ queued" in screen_text(app)
        assert live.check_action("stop", ()) is True
        await pilot.press("escape")
        await until(pilot, lambda: re.search(r"◌ queued", screen_text(app)), "queued on Home")
        await pilot.press("q")
        await pilot.pause(0.2)
        await pilot.press("enter")
        await pilot.pause()
    workspace.kill_trainer("first")
    wait_until(lambda: derive_status(live.paths).status is RunStatus.COMPLETED, what="end of the queued run")
    wait_until(lambda: not app.services.trainers.live(), what="collected trainer")
    assert max(workspace.losses(live.paths.run_id)) == 4


async def test_a_trainer_that_refuses_takes_its_run_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data changes while the trainer starts: it refuses, the run goes, and the form is back with the reason."""
    workspace = workspace_with_preset(tmp_path, monkeypatch)
    spawned: list[TrainerProcess] = []

    def change_and_spawn(*arguments: Any, **claims: bool) -> TrainerProcess:
        workspace.corpus.write_text("another text, and so other tokens than were agreed. " * 400)
        spawned.append(spawn_trainer(*arguments, **claims))
        return spawned[0]

    monkeypatch.setattr(launching, "spawn_trainer", change_and_spawn)
    app = WorkbenchApp(Services(runs_dir=workspace.runs))
    async with app.run_test(size=SMALL) as pilot:
        await home_is_filled(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen), "form")
        screen = app.screen
        assert isinstance(screen, LaunchScreen)
        await type_into(pilot, screen, "train.max_steps", "9")
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(app.screen, Live), "live screen", 60)
        await until(pilot, lambda: isinstance(app.screen, LaunchScreen) and app.screen.is_mounted, "form again", 60)
        again = app.screen
        assert isinstance(again, LaunchScreen)
        await until(pilot, lambda: again.query_one(LaunchForm).focused_row is not None, "field to blame")
        assert "gives other tokens" in again.refusal
        assert dict(again.draft.changes) == {"train.max_steps": "9"}, "what was typed is lost"
        row = again.query_one(LaunchForm).focused_row
        assert row is not None
        assert row.item.name == "data.source"
    assert not spawned[0].paths.root.exists()
    assert list(workspace.runs.iterdir()) == []


@pytest.mark.usefixtures("no_data")
async def test_any_keys_and_sizes_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started: what a start would launch is only counted."""
    app = make_app(tmp_path, nvml=FakeNvml(rtx5080()))
    monkeypatch.setattr(type(app), "launch", lambda *arguments: None)
    rng = random.Random(5)
    keys = ["down", "up", "tab", "enter", "space", "escape", "slash", "t", "v", "r", "9", "x", "backspace", "pagedown"]
    keys += ["ctrl+r", "ctrl+s", "ctrl+f", "ctrl+t", "question_mark", "left", "delete", "minus", "ctrl+g"]
    async with app.run_test(size=RICH) as pilot:
        await form_of(pilot)
        for round_ in range(20):
            if round_ % 5 == 0:
                await pilot.resize_terminal(rng.randint(1, 200), rng.randint(1, 60))
            if not isinstance(app.screen, LaunchScreen) and round_ % 10 == 0:
                app.open_preset("quickstart", None, cpu_twin=False)
            await pilot.press(rng.choice(keys))
    assert app.return_code in (None, 0)
