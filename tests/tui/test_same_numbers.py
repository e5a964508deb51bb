"""One reducer: what the app shows of a log and what `--headless` writes of it are the same numbers."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gpuworkbench.events import schema
from gpuworkbench.events.reader import EventReader
from gpuworkbench.headless.renderer import HeadlessRenderer
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus
from gpuworkbench.state.lines import format_loss, format_perplexity, notable_lines
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.run_state import RunState
from gpuworkbench.tui.follower import RunSource, RunView
from gpuworkbench.tui.panels.header import HeaderPanel
from gpuworkbench.tui.panels.messages import MessagesPanel
from gpuworkbench.tui.screens.live import PANELS
from gpuworkbench.units import format_count, format_duration
from tests.fixtures.recorded_run import NOW, cpu_history, new_run
from tests.tui.helpers import RICH, live_is_filled, make_app, screen_text


def recorded(runs: Path, last_step: int) -> RunPaths:
    """A run whose log ends within it."""
    paths = new_run(runs, f"20231114-221320-quickstart-{last_step:04d}")
    cpu_history(paths.run_id, last_step).write(paths.events)
    return paths


def view_of(paths: RunPaths) -> RunView:
    """What the app would draw."""
    source = RunSource(paths, lambda: NOW)(threading.Event())
    view = next(source)
    source.close()  # type: ignore[attr-defined]
    return view


def headless_of(paths: RunPaths) -> tuple[str, RunState]:
    """What `--headless` writes, fed a chunk at a time, and its state."""
    out = io.StringIO()
    renderer = HeadlessRenderer(out, io.StringIO(), json=False, color=False, is_terminal=False, clock=lambda: 0.0)
    log = LiveLog(paths.events, use_index=False)
    while (batch := log.poll()).lines:
        renderer.feed(batch.lines, batch.events, log.state())
    renderer.finish(log.state())
    log.close()
    return out.getvalue(), log.state()


def comparable(state: RunState) -> dict[str, object]:
    """Every field, series as lists."""
    fields = {name: getattr(state, name) for name in RunState.__struct_fields__}
    fields["series"] = {name: (points.x.tolist(), points.y.tolist()) for name, points in state.series.items()}
    return fields


@pytest.mark.parametrize("last_step", [1, 57, 250, 400])
def test_the_same_values_and_strings_at_any_step(tmp_path: Path, last_step: int) -> None:
    paths = recorded(tmp_path, last_step)
    view, (written, state) = view_of(paths), headless_of(paths)
    assert comparable(view.state) == comparable(state)
    live = replace(view, report=msgspec.structs.replace(view.report, status=RunStatus.RUNNING))
    header = "".join(part if isinstance(part, str) else str(part[0]) for part in HeaderPanel()._progress(live, 400))
    progress = next(line for line in reversed(written.splitlines()) if line.startswith("step") and "ETA" in line)

    def number(pattern: str, text: str) -> str:
        match = re.search(pattern, text)
        assert match is not None, f"no {pattern} in {text!r}"
        return match[1]

    for pattern in (r"step +(\d+/\d+)", r"loss ([\d.]+)", r"([\d.]+\w? tok/s)", r"ETA (.+?)(?:  |$)"):
        assert number(pattern, header) == number(pattern, progress)
    if state.last_eval is not None:
        lines = [line for line in written.splitlines() if " val loss " in line]
        assert number(r"val ([\d.]+)", header) == number(r"val loss ([\d.]+)", lines[-1])


async def test_the_screen_says_what_headless_wrote(tmp_path: Path) -> None:
    paths = recorded(tmp_path, 250)
    written, state = headless_of(paths)
    app = make_app(tmp_path, paths)
    async with app.run_test(size=RICH) as pilot:
        live = await live_is_filled(pilot)
        text = screen_text(app)
        await pilot.press(str(PANELS.index(MessagesPanel) + 1))
        await pilot.pause(0.3)
        messages = screen_text(app)
    assert live.view is not None
    assert comparable(live.view.state) == comparable(state)
    assert state.last_step is not None
    assert state.last_eval is not None
    for words in (
        "step 250/400",
        f"loss {format_loss(state.loss)}",
        f"val {format_loss(state.last_eval.loss)}",
        f"{format_count(state.tokens_per_s)} tok/s",
        f"elapsed {format_duration(state.elapsed_s)}",
    ):
        assert words in text
    # Perplexity: of a validation in the messages, of the last step in the progress line.
    assert f"ppl {format_perplexity(state.last_step.perplexity)}" in written
    reader = EventReader(paths.events)
    said = [
        line.text for event in reader.poll() if isinstance(event, schema.Eval) for line in notable_lines(event, state)
    ]
    reader.close()
    assert said
    for line in said:
        assert line in written
        assert re.sub(r" +", " ", line)[:60] in re.sub(r" +", " ", messages)
