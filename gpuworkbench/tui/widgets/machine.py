"""The machine in a line or two: each card's memory, load, heat and power; memory and CPU where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from textual.widgets import Static

from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.host import Host
from gpuworkbench.text import cell_width, safe_text
from gpuworkbench.tui.home_data import HomeView
from gpuworkbench.tui.widgets.glyphs import bar, fit_parts
from gpuworkbench.tui.widgets.rows import Part, lines
from gpuworkbench.units import NOT_AVAILABLE, format_bytes

MAX_CARDS = 4
BAR_WIDTH = 12


class MachineStrip(Static):
    """Live readings; what a card does not tell is n/a or left out where room is short."""

    def __init__(self) -> None:
        super().__init__("", id="machine", markup=False)
        self.view: HomeView | None = None

    def show(self, view: HomeView) -> None:
        """Take a reading."""
        self.view = view
        self.redraw()

    def on_resize(self) -> None:
        """Other parts fit."""
        self.redraw()

    def redraw(self) -> None:
        """A line a card, and one for the host."""
        view, width = self.view, self.content_size.width
        if view is None or not width:
            return
        rows = card_rows(view.cards, width) or [_host_row(view.host, view.cpu_percent, width)]
        self.update(lines(*rows))


def card_rows(cards: Sequence[Card], width: int) -> list[list[Part]]:
    """A row a card, in columns where there are several; beyond MAX_CARDS the rest in one row."""
    if len(cards) < 2:
        return [_card_row(card, safe_text(card.name or "card", max_chars=40), width) for card in cards]
    names = [f"{card.index}  {safe_text(_short(card.name), max_chars=28)}" for card in cards]
    shown = len(cards) if len(cards) <= MAX_CARDS else MAX_CARDS - 1
    longest = max(map(cell_width, names[:shown]))
    rows = [
        _card_row(card, name + " " * (longest - cell_width(name)), width)
        for card, name in zip(cards[:shown], names, strict=False)
    ]
    if rest := cards[shown:]:
        free = sum(card.memory_free_bytes or 0 for card in rest)
        rows.append([(f"{len(rest)} more cards, {format_bytes(free)} free on them; h lists them", "$foreground-muted")])
    return rows


def _short(name: str | None) -> str:
    """`RTX 5080`: what tells cards apart where several stand below one another."""
    return (name or "card").removeprefix("NVIDIA ").removeprefix("GeForce ")


def _card_row(card: Card, name: str, width: int) -> list[Part]:
    total, used = card.memory_total_bytes, card.memory_used_bytes
    share = used / total if used is not None and total else None
    throttle = card.throttle_reasons
    parts = [
        (0, f"{format_bytes(used)} of {format_bytes(total)}, {format_bytes(card.memory_free_bytes)} free"),
        (1, f"load {_with(card.utilization_percent, ' %')}"),
        (2, f"{_with(card.temperature_c, ' °C')}"),
        (3, f"{_with(card.power_w, ' W', 0)} of {_with(card.power_limit_w, ' W', 0)}"),
        (4, "clocks " + (NOT_AVAILABLE if throttle is None else ", ".join(throttle) or "free")),
        (6, f"desktop {format_bytes(card.desktop_memory_bytes)}"),
        (7, f"driver {safe_text(card.driver_version or NOT_AVAILABLE)}"),
    ]
    texts = fit_parts(parts, width - cell_width(name) - BAR_WIDTH - 4)
    return [(name, "bold"), "  ", (bar(share, BAR_WIDTH), "$primary"), "  " + "  ".join(texts)]


def _host_row(host: Host, cpu_percent: float | None, width: int) -> list[Part]:
    total, free = host.memory_total_bytes, host.memory_available_bytes
    used = total - free if total is not None and free is not None else None
    share = used / total if used is not None and total else None
    cores = "core" if host.physical_cores == 1 else "cores"
    parts = [
        (0, f"memory {format_bytes(used)} of {format_bytes(total)}, {format_bytes(free)} free"),
        (1, f"CPU {_with(cpu_percent, ' %', 0)}"),
        (2, f"{host.physical_cores} {cores}"),
        (3, safe_text(host.cpu_name or NOT_AVAILABLE, max_chars=60)),
    ]
    texts = fit_parts(parts, width - len("No CUDA card") - BAR_WIDTH - 4)
    return [("No CUDA card", "bold"), "  ", (bar(share, BAR_WIDTH), "$primary"), "  " + "  ".join(texts)]


def _with(value: float | None, unit: str, digits: int | None = None) -> str:
    if value is None:
        return NOT_AVAILABLE
    return f"{value:.{digits}f}{unit}" if digits is not None else f"{value}{unit}"
