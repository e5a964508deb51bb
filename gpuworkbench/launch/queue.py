"""The launcher's half of the queue: refusing a busy card, and giving a run its place among those that wait."""

from __future__ import annotations

import msgspec

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.runs.label import read_label, write_label
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import read_config
from gpuworkbench.runs.turns import Device, Ticket, busy_error, device_of, device_of_table, last_place, tickets


def device_of_config(config: RunConfig) -> Device:
    """The device of a resolved config."""
    return device_of(config.device.kind, config.device.uuid, config.device.index)


def users_of(device: Device) -> list[Ticket]:
    """The runs that use a device now or wait for it, in their order."""
    return tickets(device)


def refuse_busy(device: Device, *, can_share: bool = True) -> None:
    """DeviceBusyError for a card that another run uses or waits for. A CPU is shared."""
    if device.is_card and (users := users_of(device)):
        raise busy_error(device, users, can_share=can_share)


def take_place(paths: RunPaths) -> int:
    """Put a run at the end of its device's queue, in its label; returns its place. Raises RunError."""
    place = last_place(device_of_table(read_config(paths))) + 1
    write_label(paths, msgspec.structs.replace(read_label(paths), queue_position=place))
    return place
