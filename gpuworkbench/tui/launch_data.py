"""What the launch form knows of the machine: cards, host, and who uses or waits for each device."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.host import probe_host
from gpuworkbench.runs.turns import device_of, tickets
from gpuworkbench.tui.form.outlook import Machine
from gpuworkbench.tui.services import Services

INTERVAL_S = 2.0


class MachineSource:
    """The source of `Machine` readings for a `Watcher`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def __call__(self, stop: threading.Event) -> Iterator[Machine]:
        """A reading about every two seconds."""
        with self._services.make_sampler() as sampler:
            while not stop.is_set():
                yield read_machine(sampler.sample())
                stop.wait(INTERVAL_S)


def read_machine(cards: list[Card]) -> Machine:
    """The machine now, with these cards."""
    devices = [device_of("cpu"), *(device_of("cuda", card.uuid, card.index) for card in cards)]
    return Machine(tuple(cards), probe_host(), {device.key: tuple(tickets(device)) for device in devices})
