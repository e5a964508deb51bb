"""Whose turn it is on a device: one run at a time on a card, and a queue of those that wait for it.

Every device (a card by its UUID, a host's CPU) has a folder in the user's state directory. Its `lock` decides; the
kernel frees it however its holder dies. Beside it lies a ticket for every trainer that uses the device or waits for
it, naming its run. A ticket counts as long as its process holds that run's own lock, so the dead have none.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import platformdirs
from msgspec import Struct

from gpuworkbench.errors import DeviceBusyError, RunError, RunLockedError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes
from gpuworkbench.io.atomic import TEMPORARY_PREFIX
from gpuworkbench.io.reading import read_regular_file
from gpuworkbench.runs.label import read_label
from gpuworkbench.runs.lock import UNKNOWN_PID, RunLock, probe_lock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.text import safe_text

MAX_TICKET_BYTES = 16 * 1024
MAX_TICKETS = 1000
_LAST = 2**63  # the place of a run whose label names none
_NOT_FOR_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Device(NamedTuple):
    """What runs take turns on: the name of its folder, and what people call it."""

    key: str
    words: str
    is_card: bool


class Ticket(Struct, frozen=True, kw_only=True):
    """One trainer on a device or waiting for it. `run` is the run's directory, as its owner wrote it."""

    run: str
    pid: int
    is_waiting: bool
    since_unix_s: float

    @property
    def run_id(self) -> str:
        """The run's id, safe to print."""
        return safe_text(Path(self.run).name, max_chars=120)


def device_of(kind: str, uuid: str | None = None, index: int | None = None) -> Device:
    """The device of a resolved configuration: the card of that UUID, else of that index; else this host's CPU."""
    host = _NOT_FOR_NAMES.sub("-", platform.node())[:60] or "host"
    if kind != "cuda":
        return Device(f"cpu-{host}", "this host's CPU", is_card=False)
    if uuid:
        return Device(f"card-{_NOT_FOR_NAMES.sub('-', uuid)[:120]}", "the card", is_card=True)
    return Device(f"card-{host}-{index or 0}", "the card", is_card=True)


def device_of_table(config: Mapping[str, Any]) -> Device:
    """The same from a run file as plain data, which may hold anything."""
    table = config.get("device")
    values = table if isinstance(table, Mapping) else {}
    kind, uuid, index = values.get("kind"), values.get("uuid"), values.get("index")
    return device_of(
        kind if isinstance(kind, str) else "cpu",
        uuid if isinstance(uuid, str) else None,
        index if isinstance(index, int) else None,
    )


def device_folder(device: Device) -> Path:
    """Where a device's lock and tickets lie."""
    return platformdirs.user_state_path("gpuworkbench", appauthor=False) / "devices" / device.key


def tickets(device: Device) -> list[Ticket]:
    """The living tickets of a device: those that use it, then those that wait, in their order. Never raises OSError."""
    folder = device_folder(device)
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return []
    shown = [name for name in names if not name.startswith(TEMPORARY_PREFIX)][:MAX_TICKETS]
    living = [ticket for name in shown if (ticket := _read(folder / name)) is not None and is_living(ticket)]
    return sorted(living, key=_order)


def is_living(ticket: Ticket) -> bool:
    """Whether the ticket's process still holds its run."""
    return probe_lock(RunPaths(Path(ticket.run)).lock) in (ticket.pid, UNKNOWN_PID)


def ahead_of(paths: RunPaths, device: Device) -> list[Ticket]:
    """Who comes before a waiting run: those that use the device, and those that wait in front of it."""
    found = tickets(device)
    mine = next((place for place, ticket in enumerate(found) if ticket.run == str(paths.root)), len(found))
    return found[:mine]


def last_place(device: Device) -> int:
    """The highest place in the queue that a waiting run's label names; 0 where nobody waits."""
    places = [read_label(RunPaths(Path(ticket.run))).queue_position or 0 for ticket in tickets(device)]
    return max(places, default=0)


def busy_error(device: Device, users: list[Ticket], *, can_share: bool = True) -> DeviceBusyError:
    """The refusal to start on a device that others use or wait for. `can_share`: --force is a way out."""
    names = ", ".join(f"{ticket.run_id} (process {ticket.pid})" for ticket in users[:3] if not ticket.is_waiting)
    waiting = sum(ticket.is_waiting for ticket in users)
    held = f"{device.words} is in use by {names or 'another run'}"
    more = f", and {waiting} {'waits' if waiting == 1 else 'wait'} for it" if waiting else ""
    share = ", or --force to share the card with a run that leaves room" if can_share else ""
    return DeviceBusyError(held + more, f"add --queue to start after it{share}")


def describe_wait(ahead: list[Ticket]) -> str:
    """Who is waited for, in words."""
    if not ahead:
        return "next in the queue"
    holder = next((ticket for ticket in ahead if not ticket.is_waiting), ahead[0])
    others = f" and {len(ahead) - 1} more" if len(ahead) > 1 else ""
    return f"waiting for {holder.run_id}{others} to end"


class Turn:
    """One trainer's claim to a device. The run's own lock must be held; `end` gives the device back."""

    def __init__(self, paths: RunPaths, device: Device, files: Files = REAL_FILES) -> None:
        self.paths = paths
        self.device = device
        self._files = files
        self._folder = device_folder(device)
        self._lock = RunLock(self._folder / "lock", device.words)
        digest = hashlib.sha256(os.fsencode(paths.root)).hexdigest()[:16]
        self._ticket = self._folder / f"{digest}.json"

    def take(self) -> None:
        """Take the device now. Raises DeviceBusyError where others use it or wait for it, RunError where it cannot."""
        others = [ticket for ticket in tickets(self.device) if ticket.run != str(self.paths.root)]
        if others or not self._locked():
            raise busy_error(self.device, others)
        self._write(is_waiting=False)

    def share(self) -> None:
        """Use the device beside others; who waits for it waits for this run too. Raises RunError."""
        self._write(is_waiting=False)

    def wait(self) -> None:
        """Join the queue, at the place that the run's label names. Raises RunError."""
        self._write(is_waiting=True)

    def came(self) -> bool:
        """Whether it is a waiting run's turn; then it has the device. Raises RunError."""
        if any(ticket.run != str(self.paths.root) for ticket in ahead_of(self.paths, self.device)):
            return False
        if not self._locked():
            return False
        self._write(is_waiting=False)
        return True

    def end(self) -> None:
        """Give the device back, or leave the queue. Raises nothing."""
        try:
            self._files.unlink(self._ticket)
        except OSError:
            pass
        self._lock.release()

    def _locked(self) -> bool:
        self._make_folder()
        try:
            self._lock.acquire()
        except RunLockedError:
            return False
        return True

    def _write(self, *, is_waiting: bool) -> None:
        self._make_folder()
        ticket = Ticket(run=str(self.paths.root), pid=os.getpid(), is_waiting=is_waiting, since_unix_s=time.time())
        try:
            atomic_write_bytes(self._ticket, msgspec.json.encode(ticket), self._files, durable=False)
        except UnicodeEncodeError:
            raise RunError(f"{self.paths.root!s:.200} is not UTF-8", "rename that folder") from None
        except OSError as error:
            raise self._unusable(error) from None
        self._sweep()

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> RunError:
        return RunError(
            f"the queue at {self._folder} cannot be written: {error.strerror or error}",
            "free space there, or set XDG_STATE_HOME to another folder",
        )

    def _sweep(self) -> None:
        """Remove the tickets of trainers that died."""
        for path in list(self._folder.glob("*.json"))[:MAX_TICKETS]:
            ticket = None if path.name.startswith(TEMPORARY_PREFIX) else _read(path)
            if ticket is not None and path != self._ticket and not is_living(ticket):
                try:
                    self._files.unlink(path)
                except OSError:
                    continue


def _order(ticket: Ticket) -> tuple[bool, int, float, str]:
    place = _LAST
    if ticket.is_waiting:
        place = read_label(RunPaths(Path(ticket.run))).queue_position or _LAST
    return ticket.is_waiting, place, ticket.since_unix_s, ticket.run


def _read(path: Path) -> Ticket | None:
    try:
        ticket = msgspec.json.decode(read_regular_file(path, MAX_TICKET_BYTES), type=Ticket)
    except (OSError, ValueError, RecursionError):
        return None
    return ticket if os.path.isabs(ticket.run) and "\0" not in ticket.run else None
