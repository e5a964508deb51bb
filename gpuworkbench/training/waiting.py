"""A trainer's place on its device: taken at once, shared, or waited for in the queue. No torch: waiting is light."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from enum import Enum

from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.errors import ConfigError, RunError
from gpuworkbench.events.schema import ControlAck
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.runs.control import Command, poll_commands
from gpuworkbench.runs.create import newest_run_file, run_files
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.turns import Device, Turn, device_of_table
from gpuworkbench.training.controls import Signals

POLL_S = 0.2


class Claim(Enum):
    """What a trainer asks of its device. A CPU is shared unless a run queues for it."""

    ALONE = "alone"
    SHARED = "shared"
    QUEUED = "queued"


CLAIMS = {"--share": Claim.SHARED, "--queue": Claim.QUEUED}


def take_turn(paths: RunPaths, run_file: str | None, claim: Claim, log: Callable[[str], None]) -> Turn:
    """Take the run's device, or a place in its queue; the caller ends the turn.

    Raises DeviceBusyError for a card that another run uses, RunError where the queue's folder cannot be written.
    """
    device = device_of_run(paths, run_file)
    turn = Turn(paths, device)
    if claim is Claim.QUEUED:
        turn.wait()
        return turn
    try:
        if claim is Claim.ALONE and device.is_card:
            turn.take()
        else:
            turn.share()
    except RunError as error:
        log(f"others will not know that this run uses {device.words}: {error.message}")
    return turn


def device_of_run(paths: RunPaths, run_file: str | None) -> Device:
    """The device that a run file names; a file that cannot be read is refused later, with its own words."""
    path = newest_run_file(paths) if run_file is None else paths.root / run_file
    try:
        return device_of_table(parse_toml(read_config_file(path), str(path)) if path in run_files(paths) else {})
    except ConfigError:
        return device_of_table({})


def wait_for_turn(turn: Turn, events: EventWriter, signals: Signals, step: int) -> str | None:
    """Wait until the device is free and everybody ahead has had their turn; commands are answered meanwhile.

    Returns None then, and what stopped the wait (a signal's name, "stop command") where something did.
    Raises RunError.
    """
    while True:
        if signals.received is not None:
            return signal.Signals(signals.received).name
        for command in poll_commands(turn.paths):
            ok, message = _answer(command)
            events.emit(ControlAck, step=step, id=command.id, command=command.command, ok=ok, message=message)
            command.done()
            if ok:
                return "stop command"
        if turn.came():
            return None
        time.sleep(POLL_S)


def _answer(command: Command) -> tuple[bool, str]:
    if command.problem is not None:
        return False, command.problem
    if command.command == "stop":
        return True, "leaves the queue"
    return False, f"the run waits in a queue: there is nothing to {command.command} yet"
