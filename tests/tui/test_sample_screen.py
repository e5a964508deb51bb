"""Sample: choosing, writing, two side by side, ending it at once, and what goes wrong said in its place."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Select, TextArea

from gpuworkbench.data.tokenization.text_stream import TextStream
from gpuworkbench.data.tokenization.tokenizer import end_of_text
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tui import sampling
from gpuworkbench.tui.app import WorkbenchApp
from gpuworkbench.tui.sample_data import checkpoint_rows
from gpuworkbench.tui.sampling import SampleSource, Stage, parse_values
from gpuworkbench.tui.screens.home import Home
from gpuworkbench.tui.screens.live import Live
from gpuworkbench.tui.screens.runs import Runs
from gpuworkbench.tui.screens.sample import SampleScreen
from gpuworkbench.tui.services import Services
from tests.fixtures.local_run import LocalRuns
from tests.fixtures.recorded_run import HOSTILE, completed_run, crashed_run, make_checkpoint
from tests.tui.helpers import RICH, SMALL, home_is_filled, live_is_filled, make_app, screen_text, until
from tests.tui.test_screens import RAW

# A sampler that answers with what it was asked; a prompt can make it write for ever, be hostile, fail or die.
FAKE = """
import json, os, sys, time
request = json.loads(sys.argv[1])
prompt = request["prompt"]
def emit(**message):
    print(json.dumps(message), flush=True)
if "fail" in prompt:
    print("gpuworkbench: step-00000400/model.safetensors is damaged; an earlier checkpoint is used", file=sys.stderr)
    sys.exit(1)
if "die" in prompt:
    os.kill(os.getpid(), 9)
if "trace" in prompt:
    raise RuntimeError("the model\\x1b[31m cannot be built")
emit(prompt=prompt, step=request["checkpoint"] or 400)
words = [" word"] * request["tokens"] + [" seed %(seed)d k %(top_k)d t %(temperature)g" % request]
if "hostile" in prompt:
    words = [HOSTILE, "\\nsecond line"]
for n, word in enumerate(words, 1):
    emit(text=word, tokens=n)
while "endless" in prompt:
    time.sleep(0.01)
    emit(text=".", tokens=n)
emit(done={"tokens": n, "duration_s": 0.5})
""".replace("HOSTILE", repr(HOSTILE))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Samplers are fakes; every process is listed, and none may be left at the end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(request: dict[str, object], stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", FAKE, msgspec.json.encode(request).decode()]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr))
        return processes[-1]

    monkeypatch.setattr(sampling, "start_sampler", start)
    yield processes
    deadline = time.monotonic() + 10
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline, "a sampler was left behind"
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A completed run with checkpoints of steps 200 and 400."""
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    paths = completed_run(tmp_path / "runs")
    make_checkpoint(paths, 200), make_checkpoint(paths, 400)
    return paths


async def sample_is_filled(pilot: Pilot[int]) -> SampleScreen:
    """The screen with its lists filled, losses too."""
    await until(pilot, lambda: isinstance(pilot.app.screen, SampleScreen), "sample screen")
    screen = pilot.app.screen
    assert isinstance(screen, SampleScreen)
    await until(
        pilot,
        lambda: (
            screen.choices is not None and any(row.val_step for row in screen.choices.checkpoints[str(root(screen))])
        ),
        "choices",
    )
    await pilot.pause(0.1)
    return screen


def root(screen: SampleScreen) -> Path:
    return screen.panes[0].paths.root


def ask(screen: SampleScreen, prompt: str, **values: str) -> None:
    """Fill the form."""
    screen.query_one("#prompt", TextArea).text = prompt
    for name, value in values.items():
        screen.query_one(f"#{name.replace('_', '-')}", Input).value = value


async def is_at(pilot: Pilot[int], screen: SampleScreen, stage: Stage, pane: int = 0) -> None:
    await until(
        pilot, lambda: (view := screen.panes[pane].view) is not None and view.stage is stage, f"{stage} in {pane}"
    )
    await pilot.pause(0.05)


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.parametrize("origin", [Home, Runs, Live])
@pytest.mark.usefixtures("started")
async def test_from_every_screen_with_a_run(
    tmp_path: Path, run: RunPaths, origin: type[Home | Runs | Live], size: tuple[int, int]
) -> None:
    app = make_app(tmp_path / "runs", run if origin is Live else None)
    async with app.run_test(size=size) as pilot:
        if origin is Live:
            await live_is_filled(pilot)
        else:
            home = await home_is_filled(pilot)
            await pilot.press("r" if origin is Runs else "tab")
            if origin is Runs:
                await until(pilot, lambda: isinstance(app.screen, Runs) and app.screen.rows is not None, "runs")
                await pilot.pause(0.1)
            assert home is app.screen or isinstance(app.screen, Runs)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        text = screen_text(app)
        assert "newest: step 400, val 2." in text
        assert screen.query_one("#prompt", TextArea).text == "The "  # the run's own
        ask(screen, "Once\nupon", tokens="3", seed="7", top_k="0", temperature="0")
        await pilot.press("ctrl+r")
        await is_at(pilot, screen, Stage.DONE)
        text = screen_text(app)
        assert "upon word word word seed 7 k 0 t 0" in text
        assert "done, step 400, 4 tokens, 8" in text
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, origin), "the screen before")


@pytest.mark.parametrize("size", [RICH, SMALL], ids=["rich", "small"])
async def test_two_checkpoints_side_by_side(
    tmp_path: Path, run: RunPaths, size: tuple[int, int], started: list[subprocess.Popen[bytes]]
) -> None:
    app = make_app(tmp_path / "runs", run)
    async with app.run_test(size=size) as pilot:
        await live_is_filled(pilot)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        await pilot.press("ctrl+t")
        await until(pilot, lambda: len(screen.panes) == 2 and len(screen.query("#pane-b .pick-checkpoint")) == 1)
        second = screen.query_one("#pane-b .pick-checkpoint", Select)
        await until(pilot, lambda: len(second._options) == 3, "its checkpoints")
        screen.panes[1].choose(".pick-checkpoint", 200)
        ask(screen, "Both", tokens="2")
        await pilot.press("ctrl+r")
        await is_at(pilot, screen, Stage.DONE, 0)
        await is_at(pilot, screen, Stage.DONE, 1)
        requests = [msgspec.json.decode(process.args[-1]) for process in started]  # type: ignore[index]
        assert sorted(request.pop("checkpoint") or 0 for request in requests) == [0, 200]
        assert requests[0] == requests[1]
        text = screen_text(app)
        assert text.count("Both word word") == 2
        assert "step 200, 3 tokens" in text
        first, other = screen.panes
        is_beside = first.region.y == other.region.y
        assert is_beside is (size == RICH)
        await pilot.press("ctrl+t")
        await until(pilot, lambda: len(screen.query(".sample-pane")) == 1, "one again")


@pytest.mark.usefixtures("started")
async def test_two_marked_runs_and_choosing_another_run(tmp_path: Path, run: RunPaths) -> None:
    other = crashed_run(tmp_path / "runs")
    app = make_app(tmp_path / "runs")
    async with app.run_test(size=RICH) as pilot:
        await home_is_filled(pilot)
        await pilot.press("tab", "space", "space", "t")
        screen = await sample_is_filled(pilot)
        assert [pane.paths for pane in screen.panes] == [other, run]
        screen.panes[0].choose(".pick-run", str(run.root))
        await until(pilot, lambda: screen.panes[0].paths == run)
        await until(pilot, lambda: len(screen.query_one("#pane-a .pick-checkpoint", Select)._options) == 3, "its list")


async def end_by_escape(pilot: Pilot[int], screen: SampleScreen) -> None:
    await pilot.press("escape")
    await is_at(pilot, screen, Stage.CANCELLED)
    assert pilot.app.screen is screen


async def end_by_leaving(pilot: Pilot[int], screen: SampleScreen) -> None:
    pilot.app.pop_screen()
    await pilot.pause()


async def end_by_quitting(pilot: Pilot[int], screen: SampleScreen) -> None:
    await pilot.press("ctrl+q")


@pytest.mark.parametrize("end", [end_by_escape, end_by_leaving, end_by_quitting])
async def test_what_is_written_is_ended_at_once(
    tmp_path: Path, run: RunPaths, started: list[subprocess.Popen[bytes]], end: Callable[..., object]
) -> None:
    app = make_app(tmp_path / "runs", run)
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        ask(screen, "endless")
        await pilot.press("ctrl+r")
        await is_at(pilot, screen, Stage.WRITING)
        await until(pilot, lambda: "tok/s" in screen_text(app), "a rate")
        (process,) = started
        await end(pilot, screen)  # type: ignore[misc]
        if end is not end_by_quitting:
            await until(pilot, lambda: process.poll() is not None, "the end of the process", 5)
    assert process.wait(5) == -9


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("fail", "step-00000400/model.safetensors is damaged; an earlier checkpoint is used"),
        ("die", "killed by signal 9"),
        ("trace", "RuntimeError: the model␛[31m cannot be built"),
    ],
)
@pytest.mark.usefixtures("started")
async def test_failures_are_one_line_in_place(tmp_path: Path, run: RunPaths, prompt: str, said: str) -> None:
    app = make_app(tmp_path / "runs", run)
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        ask(screen, prompt)
        await pilot.press("ctrl+r")
        await is_at(pilot, screen, Stage.FAILED)
        assert said in screen_text(app)
        assert not [line for line in screen_text(app).split("\n") if RAW.search(line)]
        ask(screen, "again", tokens="1")  # nothing is stuck
        await pilot.press("ctrl+r")
        await is_at(pilot, screen, Stage.DONE)
        assert said not in screen_text(app)


async def test_without_a_checkpoint_nothing_is_started(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    app = make_app(tmp_path / "runs", completed_run(tmp_path / "runs"))
    async with app.run_test(size=SMALL) as pilot:
        await live_is_filled(pilot)
        await pilot.press("t")
        await until(pilot, lambda: "no checkpoint yet" in screen_text(app), "words")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "has no checkpoint yet; c on its screen" in screen_text(app), "words")
    assert not started


@pytest.mark.usefixtures("started")
async def test_foreign_text_arrives_harmless(tmp_path: Path, run: RunPaths) -> None:
    app = make_app(tmp_path / "runs", run)
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        ask(screen, "hostile [bold]prompt[/bold]")
        await pilot.press("ctrl+r")
        await is_at(pilot, screen, Stage.DONE)
        text = screen_text(app)
        assert "[bold]no[/bold]" in text
        assert "second line" in text
        assert not [line for line in text.split("\n") if RAW.search(line)]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("tokens", "0"), "tokens: '0' is not a whole number from 1 to 1000000"),
        (("tokens", "1e3"), "tokens: '1e3'"),
        (("temperature", "nan"), "temperature: 'nan' is not a number from 0 to 100"),
        (("temperature", ""), "temperature: ''"),
        (("top_k", "-1"), "top-k: '-1' is not a whole number from 0 on"),
        (("seed", "9" * 20), "seed: '99999999999999999999' is not"),
    ],
)
async def test_wrong_values_are_said_where_they_are(
    tmp_path: Path, run: RunPaths, typed: tuple[str, str], said: str, started: list[subprocess.Popen[bytes]]
) -> None:
    field, value = typed
    app = make_app(tmp_path / "runs", run)
    async with app.run_test(size=SMALL) as pilot:
        await live_is_filled(pilot)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        ask(screen, "The", **{field: value})
        await pilot.press("ctrl+r")
        await pilot.pause(0.1)
        assert said in screen_text(app)
        assert app.focused is screen.query_one(f"#{field.replace('_', '-')}")
    assert not started


def test_values_as_the_command_has_them() -> None:
    texts = {"tokens": " 5 ", "temperature": "0.5", "top-k": "0", "seed": "999999999999999999"}
    assert parse_values(texts) == (5, 0.5, 0, 999_999_999_999_999_999)


def test_a_checkpoint_has_the_validation_at_or_before_it(tmp_path: Path) -> None:
    paths = completed_run(tmp_path)
    for step in (5, 10, 25):
        make_checkpoint(paths, step)
    rows = checkpoint_rows(paths, {10: 3.0, 20: 2.5, 30: None})
    assert [row.words for row in rows] == ["step 25, val 2.5000 (at 20) best", "step 10, val 3.0000", "step 5"]


async def test_a_real_checkpoint(local: LocalRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text that the model's own generator writes, through a real process."""
    from gpuworkbench.models.generate import generate
    from gpuworkbench.tools import sample

    monkeypatch.setenv("XDG_CONFIG_HOME", str(local.workspace.root / "config"))
    paths = local.trained("written", {"train.max_steps": 10})
    config = sample.load_config(paths)
    tokenizer = sample.load_own_tokenizer(config.data, paths.tokenizer)
    model = sample.load_model(config, sample.choose_checkpoint(paths, None))
    prompt, stop = tokenizer.encode("The 5"), end_of_text(tokenizer)
    tokens = list(generate(model, prompt, 12, temperature=0.8, top_k=50, seed=3, stop_id=stop))
    stream = TextStream(tokenizer, prompt)
    expected = "".join(stream.push(token) for token in tokens) + stream.flush()
    app = WorkbenchApp(Services(runs_dir=local.workspace.runs), paths)
    async with app.run_test(size=RICH) as pilot:
        await live_is_filled(pilot)
        await pilot.press("t")
        screen = await sample_is_filled(pilot)
        ask(screen, "The 5", tokens="12", seed="3")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: (view := screen.panes[0].view) is not None and not view.is_going_on, "end", 60)
        view = screen.panes[0].view
        assert view is not None
        assert (view.stage, view.problem, view.step) == (Stage.DONE, "", 10)
        assert view.tokens == len(tokens)
        assert view.tokens_per_s is not None
    assert (view.prompt, view.text) == ("The 5", expected)


def test_cancelled_before_it_began(started: list[subprocess.Popen[bytes]]) -> None:
    import threading

    source = SampleSource({"prompt": "endless"})
    source.cancel()
    assert list(source(threading.Event())) == []
    assert not started
