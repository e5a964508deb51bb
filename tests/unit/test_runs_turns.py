"""Turns on a device: who has it, who waits, in which order, and what is left of the dead. With real locks."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.errors import DeviceBusyError, RunError
from gpuworkbench.launch.queue import refuse_busy, take_place
from gpuworkbench.launch.spawn import trainer_environment
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.heartbeat import PHASE_QUEUED
from gpuworkbench.runs.label import Label, read_label, write_label
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import RunStatus, derive_status
from gpuworkbench.runs.turns import (
    Ticket,
    Turn,
    ahead_of,
    device_folder,
    device_of,
    device_of_table,
    last_place,
    tickets,
)
from tests.unit.run_helpers import beat

CARD = device_of("cuda", "GPU-aaaa1111-0000-0000-0000-000000000000")
RUN_TOML = dump_toml({"device": {"kind": "cuda", "uuid": "GPU-aaaa1111-0000-0000-0000-000000000000"}})


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Runs:
    """Runs whose locks this process holds, so that their tickets count."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.locks: dict[str, RunLock] = {}

    def turn(self, name: str, place: int | None = None) -> Turn:
        paths = create_run(self.root, name, b"", RUN_TOML)
        self.locks[name] = RunLock(paths.lock)
        self.locks[name].acquire()
        if place is not None:
            write_label(paths, Label(queue_position=place))
        return Turn(paths, CARD)

    def die(self, name: str) -> None:
        """The kernel frees what a dead trainer held; its ticket stays."""
        self.locks.pop(name).release()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    found = Runs(tmp_path / "runs")
    yield found
    for name in list(found.locks):
        found.die(name)


def names(found: list[Ticket]) -> list[str]:
    return [ticket.run_id for ticket in found]


def test_devices_are_told_apart() -> None:
    assert device_of_table({"device": {"kind": "cuda", "uuid": "GPU-aaaa1111-0000-0000-0000-000000000000"}}) == CARD
    assert CARD.is_card
    assert len({CARD.key, device_of("cuda", None, 0).key, device_of("cuda", None, 1).key, device_of("cpu").key}) == 4
    for odd in ({}, {"device": 3}, {"device": {"kind": 1, "uuid": []}}):
        assert device_of_table(odd) == device_of("cpu")
    outside = device_of("cuda", "../../../etc/passwd")
    assert device_folder(outside).parent == device_folder(CARD).parent


def test_one_run_has_the_card(runs: Runs) -> None:
    first, second = runs.turn("first"), runs.turn("second")
    first.take()
    with pytest.raises(DeviceBusyError, match=rf"the card is in use by first \(process {os.getpid()}\); add --queue"):
        raise_line(second.take)
    with pytest.raises(DeviceBusyError):
        refuse_busy(CARD)
    refuse_busy(device_of("cpu"))
    first.end()
    refuse_busy(CARD)
    second.take()
    second.end()
    assert tickets(CARD) == []


def raise_line(action: object) -> None:
    """The whole line of an error as its message, to match against."""
    assert callable(action)
    try:
        action()
    except DeviceBusyError as error:
        raise DeviceBusyError(error.line()) from None


def test_the_queue_keeps_its_order(runs: Runs) -> None:
    holder = runs.turn("holder")
    holder.take()
    waiting = {name: runs.turn(name, place) for name, place in (("c", 3), ("a", 1), ("b", 2))}
    for turn in waiting.values():
        turn.wait()
    assert names(tickets(CARD)) == ["holder", "a", "b", "c"]
    assert names(ahead_of(waiting["b"].paths, CARD)) == ["holder", "a"]
    assert last_place(CARD) == 3
    assert not any(turn.came() for turn in waiting.values())
    holder.end()
    with pytest.raises(DeviceBusyError, match=r"in use by another run, and 3 wait for it"):
        holder.take()
    for name in "abc":
        assert [turn.came() for turn in waiting.values()] == [other == name for other in waiting]
        waiting.pop(name).end()
    holder.take()


def test_any_order_of_arrival_gives_the_order_of_places(runs: Runs) -> None:
    rng = random.Random(3)
    places = rng.sample(range(1, 100), 8)
    turns = {place: runs.turn(f"run-{place}", place) for place in places}
    for turn in turns.values():
        turn.wait()
    came = []
    while turns:
        (place,) = [place for place, turn in turns.items() if turn.came()]
        came.append(place)
        turns.pop(place).end()
    assert came == sorted(places)


def test_the_dead_are_in_nobodys_way(runs: Runs) -> None:
    holder, first, second = runs.turn("holder"), runs.turn("first", 1), runs.turn("second", 2)
    holder.take()
    first.wait()
    second.wait()
    holder._lock.release()
    runs.die("holder")
    runs.die("first")
    assert names(tickets(CARD)) == ["second"]
    assert second.came()
    assert len(list(device_folder(CARD).glob("*.json"))) == 1, "tickets of the dead were swept"


def test_a_shared_card_is_waited_for_until_all_have_left(runs: Runs) -> None:
    one, other, late = runs.turn("one"), runs.turn("other"), runs.turn("late", 1)
    one.take()
    other.share()
    late.wait()
    one.end()
    assert not late.came()
    other.end()
    assert late.came()


def test_a_place_is_the_end_of_the_queue(runs: Runs) -> None:
    paths = [runs.turn(name) for name in ("a", "b")]
    for index, turn in enumerate(paths, start=1):
        assert take_place(turn.paths) == index
        turn.wait()
    write_label(paths[0].paths, Label(name="mine", notes="kept", queue_position=7))
    assert take_place(paths[0].paths) == 8
    assert read_label(paths[0].paths) == Label(name="mine", notes="kept", queue_position=8)
    assert names(tickets(CARD)) == ["b", "a"], "moved behind"


def test_status_says_who_is_waited_for(runs: Runs) -> None:
    holder, first, second = runs.turn("holder"), runs.turn("first", 1), runs.turn("second", 2)
    holder.take()
    for turn in (first, second):
        turn.wait()
        data = beat(os.getpid(), idle_s=None, phase=PHASE_QUEUED)
        turn.paths.heartbeat.write_bytes(msgspec.json.encode(data))
    reports = [derive_status(turn.paths) for turn in (first, second)]
    assert [report.status for report in reports] == [RunStatus.QUEUED] * 2
    assert [report.reason for report in reports] == [
        "waiting for holder to end",
        "waiting for holder and 1 more to end",
    ]
    holder.end()
    assert derive_status(first.paths).reason == "next in the queue"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"run": "relative", "pid": 1, "is_waiting": false, "since_unix_s": 0}', b"\xff" * 99999],
)
def test_strange_tickets_count_for_nothing(runs: Runs, content: bytes) -> None:
    turn = runs.turn("mine")
    device_folder(CARD).mkdir(parents=True)
    (device_folder(CARD) / "strange.json").write_bytes(content)
    os.mkfifo(device_folder(CARD) / "pipe.json")
    (device_folder(CARD) / "link.json").symlink_to("/etc/passwd")
    turn.take()
    assert names(tickets(CARD)) == ["mine"]


def test_a_folder_that_cannot_be_written_is_one_line(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")
    turn = runs.turn("mine")
    for act in (turn.wait, turn.share, turn.take):
        with pytest.raises(RunError, match="cannot be written: "):
            act()
    turn.end()
    assert tickets(CARD) == []


@pytest.mark.parametrize("flags", [[], ["--share"]])
def test_a_trainer_refuses_a_card_in_use_and_changes_nothing(runs: Runs, flags: list[str]) -> None:
    """Alone it is refused before it writes anything; sharing it gets further, here to its incomplete run file."""
    runs.turn("holder").take()
    paths = create_run(runs.root, "new", b"", RUN_TOML)
    command = [sys.executable, "-P", "-m", "gpuworkbench.training", str(paths.root), "run.toml", *flags]
    result = subprocess.run(command, env=trainer_environment(), capture_output=True, text=True, check=False)
    if flags:
        assert result.returncode == 2
        assert "schema_version is missing" in result.stderr
    else:
        assert result.returncode == 3
        assert "the card is in use by holder" in result.stderr
        assert not RunPaths(paths.root).events.exists()
        assert not paths.heartbeat.exists()
