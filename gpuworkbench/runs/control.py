"""Commands to a living trainer: one small file each, renamed into `control/`, acknowledged by an event.

Anybody who can write the directory can put anything there, so the trainer's side never blocks, never follows a link
and never raises over what it finds.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gpuworkbench.errors import RunError, UsageError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes
from gpuworkbench.io.atomic import TEMPORARY_PREFIX
from gpuworkbench.io.reading import read_regular_file
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.tail import TAIL_BYTES, WIDE_TAIL_BYTES, Glimpse, tail_events
from gpuworkbench.text import safe_text

# command -> the arguments it must have
COMMANDS: Mapping[str, frozenset[str]] = {
    "pause": frozenset(),
    "continue": frozenset(),
    "checkpoint": frozenset(),
    "stop": frozenset(),
    "set": frozenset({"key", "value"}),
}
MAX_COMMAND_BYTES = 64 * 1024
MAX_COMMANDS_PER_POLL = 64
_NAME = re.compile(r"(\d{20})-[0-9a-f]{8}\.json")
_ASIDE_PREFIX = ".bad-"


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command file's content."""

    command: str
    args: dict[str, Any] = {}


class Command(Struct, frozen=True, kw_only=True):
    """One command as the trainer sees it. `problem` says why it cannot be obeyed; it is then only acknowledged."""

    id: str
    command: str
    args: dict[str, Any]
    path: Path
    problem: str | None = None
    files: Files = REAL_FILES

    def done(self) -> None:
        """Remove the command's file, after acting on it and acknowledging it. Never raises OSError."""
        try:
            self.files.unlink(self.path)
        except OSError:
            _put_aside(self.path, self.files)


def send_command(
    paths: RunPaths, command: str, args: Mapping[str, Any] | None = None, files: Files = REAL_FILES
) -> str:
    """Put a command into the run's control directory; returns the id its acknowledgement will carry.

    Raises UsageError for an unknown command or wrong arguments, RunError where the directory cannot be written.
    """
    given = dict(args or {})
    if problem := _problem_with(command, given):
        raise UsageError(problem, f"commands: {', '.join(COMMANDS)}")
    try:
        data = msgspec.json.encode(_Request(command=command, args=given))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{command}: the arguments cannot be written as JSON: {error}", "give plain values") from None
    if len(data) > MAX_COMMAND_BYTES:
        raise UsageError(f"{command}: the arguments are longer than {MAX_COMMAND_BYTES} bytes", "shorten them")
    command_id = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    try:
        atomic_write_bytes(paths.control / f"{command_id}.json", data, files)
    except OSError as error:
        raise RunError(
            f"run {paths.run_id} cannot be sent {command}: {error.strerror or error}", f"check {paths.control}"
        ) from None
    return command_id


def poll_commands(paths: RunPaths, files: Files = REAL_FILES) -> list[Command]:
    """The waiting commands, oldest first, at most MAX_COMMANDS_PER_POLL. Each stays until its `done()`.

    What is no command comes back with a `problem`. Never raises; a missing directory has no commands.
    """
    commands = []
    for name in _waiting(paths.control)[:MAX_COMMANDS_PER_POLL]:
        command = _read(paths.control / name, files)
        if command is not None:
            commands.append(command)
    return commands


def discard_commands_before(paths: RunPaths, unix_s: float, files: Files = REAL_FILES) -> int:
    """Drop commands sent before `unix_s` (this attempt's start): a `stop` meant for a trainer that died first.

    Returns how many went. Raises nothing.
    """
    dropped = 0
    for name in _waiting(paths.control):
        match = _NAME.fullmatch(name)
        if match and int(match[1]) < unix_s * 1e9:
            _remove(paths.control / name, files)
            dropped += 1
    return dropped


def wait_ack(
    paths: RunPaths,
    command_id: str,
    timeout_s: float,
    *,
    keep_waiting: Callable[[], bool] = lambda: True,
    interval_s: float = 0.05,
) -> Glimpse | None:
    """Wait for the `control_ack` event of `command_id`; None when time is up or `keep_waiting` turns false.

    The result has `ok` and `message`. Looks at what the log grew by since the last look, and some more.
    """
    deadline = time.monotonic() + timeout_s
    seen_bytes = 0
    while True:
        going_on = keep_waiting() and time.monotonic() < deadline
        size = _size(paths.events)
        for event in tail_events(paths.events, min(size - seen_bytes + TAIL_BYTES, WIDE_TAIL_BYTES)):
            if event.type == "control_ack" and event.id == command_id:
                return event
        if not going_on:
            return None
        seen_bytes = size
        time.sleep(interval_s)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _waiting(control: Path) -> list[str]:
    try:
        names = os.listdir(control)
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith((TEMPORARY_PREFIX, _ASIDE_PREFIX)))


def _read(path: Path, files: Files) -> Command | None:
    """A command, or the report of a bad one; None where the file went while it was looked at."""
    if not _NAME.fullmatch(path.name):
        return _bad(path, "its name is not <time>-<8 hex>.json", files)
    try:
        request = msgspec.json.decode(read_regular_file(path, MAX_COMMAND_BYTES), type=_Request)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _bad(path, error.strerror or str(error), files)
    except (ValueError, RecursionError) as error:
        return _bad(path, str(error), files)
    if problem := _problem_with(request.command, request.args):
        return _bad(path, problem, files)
    return Command(id=path.stem, command=request.command, args=request.args, path=path, files=files)


def _problem_with(command: str, args: Mapping[str, Any]) -> str | None:
    if command not in COMMANDS:
        return f"{command[:40]!r} is not a command"
    if set(args) != COMMANDS[command]:
        wanted = ", ".join(sorted(COMMANDS[command])) or "no arguments"
        return f"{command} takes {wanted}"
    if command == "set" and not isinstance(args["key"], str):
        return "set takes a key that is text"
    return None


def _bad(path: Path, why: str, files: Files) -> Command:
    """Report a bad command. Its file goes now, so that it is reported once."""
    _remove(path, files)
    shown = safe_text(path.stem, max_chars=80)
    problem = safe_text(f"control file {shown} was ignored: {why}", max_chars=400)
    return Command(id=shown, command="", args={}, path=path, problem=problem, files=files)


def _remove(path: Path, files: Files) -> None:
    try:
        files.unlink(path)
    except OSError:
        _put_aside(path, files)


def _put_aside(path: Path, files: Files) -> None:
    """What cannot be unlinked (a directory) is renamed, so that it is not met again."""
    try:
        files.rename(path, path.with_name(f"{_ASIDE_PREFIX}{secrets.token_hex(4)}"))
    except OSError:
        return
