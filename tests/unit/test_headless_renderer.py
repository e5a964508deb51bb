"""Exact lines of a run without a screen, on a terminal, elsewhere and as JSON."""

from __future__ import annotations

import errno
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from gpuworkbench.events import schema
from gpuworkbench.events.codec import encode
from gpuworkbench.headless.follow import follow
from gpuworkbench.headless.renderer import HeadlessRenderer
from gpuworkbench.headless.terminal import fit_parts
from gpuworkbench.state.live_log import LiveLog
from gpuworkbench.state.reducer import Reducer
from gpuworkbench.text import cell_width
from tests.fixtures.event_logs import LogBuilder

CLEAR = "\r\x1b[K"


class Stage:
    """A renderer with string streams, a frozen clock, and a log to feed it from event by event."""

    def __init__(self, *, terminal: bool = False, json: bool = False, color: bool | None = False, width: int = 200):
        self.out, self.err = io.StringIO(), io.StringIO()
        self.now = 0.0
        self.log = LogBuilder()
        self.reducer = Reducer()
        self.renderer = HeadlessRenderer(
            self.out,
            self.err,
            json=json,
            color=color,
            is_terminal=terminal,
            clock=lambda: self.now,
            width=lambda: width,
        )

    def show(self, tail: bytes = b"") -> str:
        """Feed what was added to the log since; what came out for people since the last call."""
        new = self.log.events[self.reducer.fold.state.n_events :]
        self.reducer.apply(new)
        lines = b"".join(encode(event) for event in new) + tail
        self.renderer.feed(lines, new, self.reducer.snapshot())
        return self.taken(self.renderer._people.stream._stream)

    @staticmethod
    def taken(stream: io.StringIO) -> str:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return text


def test_plain_lines_at_step_one_and_then_every_few_seconds() -> None:
    stage = Stage()
    stage.log.start(n_params=124_439_808)
    assert stage.show() == "run 20250101-000000-quick-abcd (preset quick, 124.4M parameters) on cpu\n"
    stage.log.step(1, 5.0)
    assert stage.show() == "step   1/100  full  loss 5.0000  ppl 148.4  10.0k tok/s  mem n/a  ETA 9.90 s\n"
    for step in range(2, 20):
        stage.now += 0.5
        stage.log.step(step, 4.0)
        shown = stage.show()
        if step == 11:
            assert shown == "step  11/100  full  loss 4.0000  ppl 54.6  10.0k tok/s  mem n/a  ETA 8.90 s\n"
        else:
            assert shown == ""


def test_notable_events_come_at_once() -> None:
    stage = Stage()
    stage.log.start().step(1, 5.0)
    stage.show()
    log = stage.log
    log.add(schema.Memory, 1, host_rss_bytes=2**30)
    log.add(schema.PhaseChanged, 1, from_phase="warmup", to_phase="full", reason="warm", planned_steps=20)
    log.eval(10, 3.0, is_best=True).eval(20, None).checkpoint(20)
    log.add(schema.Sample, 20, prompt="Once", text="upon\na\ttime")
    log.add(schema.Warning, 21, code="c", message="disk nearly full", hint="free 2 GiB")
    log.add(schema.ConfigChanged, 21, key="optimizer.lr", old=0.001, new=None)
    log.add(schema.ControlAck, 22, id="1", command="pause", ok=True)
    log.add(schema.ControlAck, 22, id="2", command="dance", ok=False, message="unknown command")
    log.add(schema.Paused, 22).add(schema.Resumed, 22, paused_s=75.0)
    log.add(schema.Divergence, 23, level="warn", signal="loss_spike", value=9.5, threshold=2.0, action="roll back")
    losses = {"actual_loss": 3.5, "predicted_loss": 2.5, "residual_norm": 0.1}
    log.add(schema.Correction, 24, **losses, rolled_back=False).add(schema.Correction, 25, **losses, rolled_back=True)
    log.add(schema.Error, 26, kind="cuda_oom", message="out of memory", hint="halve train.micro_batch_size")
    log.add(schema.RunFinished, 26, status="failed", exit_code=1, reason="out of memory")
    log.resume(20, card="RTX 5080", simulated_card="simulated", is_cpu_twin=True)
    assert stage.show().splitlines() == [
        "step   1/100  phase full for 20 steps: warm",
        "step  10/100  val loss 3.0000  ppl 20.1  best so far  (8.2k tokens in 2.00 s)",
        "step  20/100  val loss n/a  ppl n/a  (8.2k tokens in 2.00 s)",
        "step  20/100  checkpoint checkpoints/step-00000020  (1.0 MiB in 0.50 s, training waited 0.25 s)",
        "step  20/100  sample after 'Once':",
        "    upon",
        "    a    time",
        "step  21/100  warning: disk nearly full; free 2 GiB",
        "step  21/100  optimizer.lr changed from 0.001 to n/a",
        "step  22/100  pause done",
        "step  22/100  dance refused: unknown command",
        "step  22/100  paused",
        "step  22/100  going on after 1 min 15 s",
        "step  23/100  divergence (warn): loss_spike 9.5000, threshold 2.0000; roll back",
        "step  25/100  rolled back: loss 3.5000, predicted loss 2.5000",
        "step  26/100  error (cuda_oom): out of memory; halve train.micro_batch_size",
        "step  26/100  failed: out of memory",
        "resumed from step 20: run 20250101-000000-quick-abcd (preset quick, CPU twin) on RTX 5080 (simulated)",
    ]


def test_a_predicted_loss_is_called_predicted() -> None:
    stage = Stage()
    stage.log.start().step(1, 5.0, phase="predict")
    fields = {"predictor": "linear", "exploration": False, "horizon_steps": 9, "confidence": 0.5}
    stage.log.add(schema.Prediction, 10, **fields, predicted_loss=1.5, probe_before=4, probe_after=3, accepted=True)
    assert stage.show().splitlines()[1] == (
        "step  10/100  predict  loss 5.0000  ppl 148.4  predicted loss 1.5000  10.0k tok/s  mem n/a  ETA 9.00 s"
    )


def test_unknown_numbers_are_not_available() -> None:
    stage = Stage()
    stage.log.start(max_steps=None).step(1, None, tokens_per_s=None, step_time_s=None)
    assert stage.show().splitlines()[1] == "step 1  full  loss n/a  ppl n/a  n/a tok/s  mem n/a  ETA n/a"


def test_a_terminal_gets_one_line_redrawn_in_place() -> None:
    stage = Stage(terminal=True)
    stage.log.start()
    assert stage.show() == "run 20250101-000000-quick-abcd (preset quick) on cpu\n"
    first = "step   1/100  full  loss 5.0000  ppl 148.4  10.0k tok/s  mem n/a  ETA 9.90 s"
    stage.log.step(1, 5.0)
    assert stage.show() == CLEAR + first
    stage.log.step(2, 4.0)
    stage.now += 0.05
    assert stage.show() == ""  # too soon
    stage.log.add(schema.Warning, 2, code="c", message="m")
    assert stage.show() == f"{CLEAR}step   2/100  warning: m\n{first}"
    stage.now += 0.1
    second = "step   2/100  full  loss 4.0000  ppl 54.6  10.0k tok/s  mem n/a  ETA 9.80 s"
    assert stage.show() == CLEAR + second
    stage.renderer.finish(stage.reducer.snapshot())
    assert stage.taken(stage.out).startswith("\nrun         20250101-000000-quick-abcd: not finished at step 2/100\n")


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (200, "step   1/100  full  loss 5.0000  ppl 148.4  10.0k tok/s  host 1.00 GiB  ETA 9.90 s"),
        (83, "step   1/100  full  loss 5.0000  ppl 148.4  10.0k tok/s  host 1.00 GiB  ETA 9.90 s"),
        (82, "step   1/100  full  loss 5.0000  ppl 148.4  10.0k tok/s  ETA 9.90 s"),
        (60, "step   1/100  full  loss 5.0000  10.0k tok/s  ETA 9.90 s"),
        (50, "step   1/100  full  loss 5.0000  ETA 9.90 s"),
        (40, "step   1/100  loss 5.0000  ETA 9.90 s"),
        (30, "step   1/100  loss 5.0000"),
        (20, "step   1/100"),
        (6, "step "),
        (1, "s"),
    ],
)
def test_the_progress_line_fits_the_terminal(width: int, line: str) -> None:
    stage = Stage(terminal=True, width=width)
    stage.log.start().add(schema.Memory, 0, host_rss_bytes=2**30).step(1, 5.0)
    shown = stage.show().split(CLEAR)[-1]
    assert shown == line
    assert len(shown) <= max(width - 1, 1)


def test_wide_characters_count_twice() -> None:
    assert cell_width("損失") == 4
    assert cell_width("e\u0301") == 1
    assert fit_parts([(0, "損失損失")], 5) == "損失"


def test_color_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for no_color, terminal, color, expected in [
        ("", True, None, True),
        ("1", True, None, False),
        ("", False, None, False),
        ("", True, False, False),
        ("1", False, True, True),
    ]:
        monkeypatch.setenv("NO_COLOR", no_color)
        stage = Stage(terminal=terminal, color=color)
        stage.log.add(schema.Warning, 0, code="c", message="m")
        text = "step 0  warning: m"
        assert stage.show() == (f"\x1b[33m{text}\x1b[0m\n" if expected else f"{text}\n")


HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\r\u202e\x9b\ud800 [red]x\n\tnext"


def test_no_control_character_of_a_log_reaches_the_terminal() -> None:
    stage = Stage()
    log = stage.log.start(run_id=HOSTILE, preset=HOSTILE, device=HOSTILE, card=HOSTILE, simulated_card=HOSTILE)
    log.step(1, phase=HOSTILE).eval(1, 3.0, split=HOSTILE).checkpoint(1, path=HOSTILE)
    log.add(schema.PhaseChanged, 1, from_phase=HOSTILE, to_phase=HOSTILE, reason=HOSTILE)
    log.add(schema.Sample, 1, prompt=HOSTILE, text=HOSTILE).add(schema.Error, 1, kind=HOSTILE, message=HOSTILE)
    log.add(schema.Warning, 1, code=HOSTILE, message=HOSTILE, hint=HOSTILE)
    log.add(schema.ConfigChanged, 1, key=HOSTILE, old=HOSTILE, new={"a": HOSTILE})
    log.add(schema.ControlAck, 1, id=HOSTILE, command=HOSTILE, ok=False, message=HOSTILE)
    log.add(schema.Divergence, 1, level=HOSTILE, signal=HOSTILE, value=None, threshold=None, action=HOSTILE)
    log.add(schema.RunFinished, 1, status=HOSTILE, exit_code=1, reason=HOSTILE)
    shown = stage.show()
    stage.renderer.note(HOSTILE)
    stage.renderer.finish(stage.reducer.snapshot())
    shown += stage.taken(stage.out)
    assert shown.count("[red]x") > 20
    raw = {char for char in shown if not char.isprintable() and char != "\n"}
    assert raw == set()


def test_json_is_the_log_and_nothing_else() -> None:
    stage = Stage(json=True)
    stage.log.start().step(1, 5.0).eval(1, 3.0)
    future = b'{"type":"of_the_future","v":7,"seq":3,"x":[1]}\n'
    people = stage.show(tail=b'{"torn": tr\n\n' + future)
    assert people.splitlines()[0] == "run 20250101-000000-quick-abcd (preset quick) on cpu"
    stage.renderer.note("hello")
    stage.renderer.finish(stage.reducer.snapshot())
    expected = b"".join(encode(event) for event in stage.log.events) + future
    assert stage.out.getvalue() == expected.decode()
    assert "hello" in stage.err.getvalue()


def test_json_to_a_terminal_is_escaped_but_means_the_same() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    renderer = HeadlessRenderer(out, io.StringIO(), json=True, color=False, is_terminal=True)
    event = LogBuilder().add(schema.Sample, 1, prompt="é\x9b😀", text="\x1b[2J\u202e\ud800").events[0]
    renderer.feed(encode(event), [event], Reducer().snapshot())
    shown = out.getvalue()
    assert shown.isascii()
    assert shown[:-1].isprintable()
    assert '"prompt":"\\u00e9\\u009b\\ud83d\\ude00"' in shown


class Broken(io.StringIO):
    """A pipe whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    path = LogBuilder().start().step(1).eval(1, 3.0).write(tmp_path / "events.jsonl")
    for json in (True, False):
        renderer = HeadlessRenderer(Broken(), Broken(), json=json, color=False, is_terminal=False)
        state = follow(path, renderer, poll_s=0, is_done=lambda: True)
        renderer.finish(state)
        assert state.step == 1


def test_a_closed_pipe_leaves_a_quiet_interpreter(tmp_path: Path) -> None:
    log = LogBuilder().start()
    for step in range(1, 3000):
        log.step(step)
    path = log.write(tmp_path / "events.jsonl")
    script = (
        "import sys; from pathlib import Path\n"
        "from gpuworkbench.headless.follow import follow\n"
        "from gpuworkbench.headless.renderer import HeadlessRenderer\n"
        "r = HeadlessRenderer(sys.stdout, sys.stderr, json=True, color=False, is_terminal=False)\n"
        "s = follow(Path(sys.argv[1]), r, poll_s=0, is_done=lambda: True)\n"
        "sys.exit(s.step % 256)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(30) == 2999 % 256
    assert "Broken" not in errors
    assert "Traceback" not in errors


def test_an_ascii_stream_gets_escapes() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    renderer = HeadlessRenderer(out, out, json=False, color=False, is_terminal=False)
    renderer.note("é…")
    assert raw.getvalue() == b"\\xe9\\u2026\n"


def test_follow_waits_drains_and_skips_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = LogBuilder().start().step(1)
    log.write(path)
    earlier = LiveLog(path, use_index=False)
    earlier.catch_up()
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        log.step(1 + len(polls)).write(path)

    out = io.StringIO()
    renderer = HeadlessRenderer(out, io.StringIO(), json=True, color=False, is_terminal=False)
    state = follow(path, renderer, poll_s=0.5, is_done=lambda: len(polls) == 3, log=earlier, sleep=sleep)
    assert polls == [0.5] * 3
    assert state.step == 4
    assert out.getvalue() == b"".join(encode(event) for event in log.events[2:]).decode()


def test_a_real_terminal_sees_only_our_own_escapes(tmp_path: Path) -> None:
    path = LogBuilder().start().step(1).add(schema.Sample, 1, prompt=HOSTILE, text=HOSTILE).write(tmp_path / "e.jsonl")
    master, slave = pty.openpty()
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as stream:
            renderer = HeadlessRenderer(stream, stream, json=False, color=False, is_terminal=True, width=lambda: 80)
            renderer.finish(follow(path, renderer, poll_s=0, is_done=lambda: True))
        seen = os.read(master, 65536).decode()
    finally:
        os.close(master)
    ours = seen.replace(CLEAR, "").replace("\r\n", "\n")
    assert [char for char in ours if not char.isprintable() and char != "\n"] == []
