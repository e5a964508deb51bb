"""Commands: order, acknowledgement, and whatever else may lie in control/."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.errors import RunError, UsageError
from gpuworkbench.runs.control import (
    MAX_COMMANDS_PER_POLL,
    discard_commands_before,
    poll_commands,
    send_command,
    wait_ack,
)
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.paths import RunPaths
from tests.unit.run_helpers import step, write_events


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return create_run(tmp_path, "run", b"", b"")


def test_commands_come_in_order_and_stay_until_done(run: RunPaths) -> None:
    ids = [send_command(run, name) for name in ("pause", "checkpoint", "continue")]
    ids.append(send_command(run, "set", {"key": "optimizer.lr", "value": 1e-4}))
    ids.append(send_command(run, "stop"))
    for _ in range(2):
        commands = poll_commands(run)
        assert [command.id for command in commands] == ids
        assert [command.command for command in commands] == ["pause", "checkpoint", "continue", "set", "stop"]
    assert commands[3].args == {"key": "optimizer.lr", "value": 1e-4}
    assert all(command.problem is None for command in commands)
    for command in commands:
        command.done()
        command.done()
    assert poll_commands(run) == []
    assert os.listdir(run.control) == []


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("explode", {}),
        ("", {}),
        ("stop", {"now": True}),
        ("set", {}),
        ("set", {"key": "a"}),
        ("set", {"key": 1, "value": 2}),
        ("set", {"key": "a", "value": object()}),
        ("set", {"key": "a", "value": "x" * 70_000}),
    ],
)
def test_wrong_commands_are_refused_by_the_sender(run: RunPaths, command: str, args: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        send_command(run, command, args)
    assert os.listdir(run.control) == []


def test_a_run_without_control_directory(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    assert poll_commands(run) == []
    with pytest.raises(RunError, match="cannot be sent stop"):
        send_command(run, "stop")


def test_foreign_things_are_reported_once_and_never_followed(run: RunPaths, tmp_path: Path) -> None:
    good = send_command(run, "pause")
    name = "{:020d}-0000000{}.json"
    precious = tmp_path / "precious"
    precious.write_text('{"command": "stop"}')
    (run.control / name.format(1, 1)).symlink_to(precious)
    os.mkfifo(run.control / name.format(2, 2))
    (run.control / name.format(3, 3)).write_bytes(b" " * 1_000_000)
    (run.control / name.format(4, 4)).write_bytes(b"[" * 60_000)
    (run.control / name.format(5, 5)).write_bytes(b'{"command": "stop", "extra": 1}')
    (run.control / name.format(6, 6)).write_bytes(b'{"command": "launch"}')
    (run.control / name.format(7, 7)).mkdir()
    (run.control / name.format(7, 7) / "inside").touch()
    (run.control / "evil\x1b]52;c;x\x07.json").write_text('{"command": "stop"}')
    (run.control / ".tmp-1-half").write_text("{")
    commands = poll_commands(run)
    assert [command.id for command in commands if command.problem is None] == [good]
    bad = [command for command in commands if command.problem is not None]
    assert len(bad) == 8
    assert all(command.command == "" and command.problem.isprintable() for command in bad)
    assert all(command.id.isprintable() for command in bad)
    for command in commands:
        command.done()
    assert poll_commands(run) == []
    assert precious.read_text() == '{"command": "stop"}'
    left = sorted(os.listdir(run.control))
    assert left[0].startswith(".bad-")  # the directory, put aside
    assert left[1:] == [".tmp-1-half"]


def test_a_flood_is_taken_in_portions(run: RunPaths) -> None:
    ids = [send_command(run, "pause") for _ in range(MAX_COMMANDS_PER_POLL + 5)]
    first = poll_commands(run)
    assert [command.id for command in first] == ids[:MAX_COMMANDS_PER_POLL]
    for command in first:
        command.done()
    assert [command.id for command in poll_commands(run)] == ids[MAX_COMMANDS_PER_POLL:]


@settings(max_examples=200, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode),
    )
)
def test_any_content_is_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    run = RunPaths(tmp_path_factory.mktemp("run"))
    run.control.mkdir()
    (run.control / f"{1:020d}-00000000.json").write_bytes(content)
    (command,) = poll_commands(run)
    assert command.problem is not None
    assert poll_commands(run) == []


def test_commands_for_a_trainer_that_died_are_dropped(run: RunPaths) -> None:
    send_command(run, "stop")
    started = time.time()
    later = send_command(run, "pause")
    assert discard_commands_before(run, started) == 1
    assert [command.id for command in poll_commands(run)] == [later]


def test_waiting_for_the_acknowledgement(run: RunPaths) -> None:
    command_id = send_command(run, "checkpoint")
    ack = {"type": "control_ack", "id": command_id, "command": "checkpoint", "ok": False, "message": "disk full"}
    write_events(run, [{**ack, "id": "another"}])
    assert wait_ack(run, command_id, 0.0) is None
    assert wait_ack(run, command_id, 60.0, keep_waiting=lambda: False) is None

    def trainer() -> None:
        time.sleep(0.1)
        write_events(run, [step(1), ack, *(step(number) for number in range(3000))])  # the log grows quickly

    thread = threading.Thread(target=trainer)
    thread.start()
    event = wait_ack(run, command_id, 10.0)
    thread.join()
    assert event is not None
    assert (event.ok, event.message, event.command) == (False, "disk full", "checkpoint")
