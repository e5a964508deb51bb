"""Which device a run gets, from its configuration and the cards that are here.

A preset's `[card]` is matched on compute capability and memory as measured, never on the card's name.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from gpuworkbench.config.schema import CardConfig, RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError
from gpuworkbench.gpu.card import Card
from gpuworkbench.text import safe_text
from gpuworkbench.units import GIB, NOT_AVAILABLE


class DeviceChoice(Struct, frozen=True, kw_only=True):
    """Where a run computes. `uuid` is what run.toml stores; `index` is among the visible cards."""

    kind: Literal["cuda", "cpu"]
    index: int | None = None
    uuid: str | None = None
    card: Card | None = None


CPU = DeviceChoice(kind="cpu")


def select_device(
    config: RunConfig,
    cards: Sequence[Card],
    preset_argument: str | None = None,
    *,
    has_cpu_twin: bool = True,
    force: bool = False,
) -> DeviceChoice:
    """The device for a run. `preset_argument` is how the person named the preset (default: its name).

    A CPU twin computes on the CPU whatever device keys its card preset has. `force` takes the best card that is here
    although it falls short of the preset's card section; where there is no card it changes nothing.
    Raises DoesNotFitError (exit 4) where no card here will do, ConfigError where the device keys contradict each
    other or name a card that is not there.
    """
    device = config.device
    if config.is_cpu_twin:
        return CPU
    if device.kind == "cpu":
        return _cpu(config)
    refusal = _Refusal(config, preset_argument or config.preset, has_cpu_twin)
    if device.uuid is not None:
        return _stored(config, cards, refusal, force)
    if device.index is not None and cards and device.index >= len(cards):
        raise ConfigError(
            f"device.index = {device.index} is not there: {_count(len(cards))} visible", "indices start at 0"
        )
    candidates = list(cards) if device.index is None else [card for card in cards if card.index == device.index]
    fitting = [card for card in candidates if _shortcomings(config, card) is None]
    if fitting:
        return _cuda(fitting[0])
    if config.card is None and device.kind == "auto" and not cards:
        if device.index is not None:
            raise ConfigError(f"device.index = {device.index}: no CUDA card is here", "leave device.index out")
        return _cpu(config)
    if force and candidates:
        return _cuda(_best(candidates))
    raise refusal.of(candidates)


def _cpu(config: RunConfig) -> DeviceChoice:
    if config.device.memory_limit_gib is not None:
        raise ConfigError(
            "device.memory_limit_gib caps a card's memory, and this run computes on the CPU",
            "leave it out, or set device.kind=cuda",
        )
    return CPU


def _cuda(card: Card) -> DeviceChoice:
    return DeviceChoice(kind="cuda", index=card.index, uuid=card.uuid, card=card)


def _stored(config: RunConfig, cards: Sequence[Card], refusal: _Refusal, force: bool) -> DeviceChoice:
    """The card the run was created with."""
    for card in cards:
        if card.uuid == config.device.uuid:
            if not force and _shortcomings(config, card) is not None:
                raise refusal.of([card])
            return _cuda(card)
    if not cards:
        raise DoesNotFitError(
            f"the run's card {config.device.uuid} is not here: no CUDA card",
            "check the driver and CUDA_VISIBLE_DEVICES",
        )
    here = ", ".join(f"{card.uuid or NOT_AVAILABLE} ({card.name or 'unnamed'})" for card in cards)
    raise DoesNotFitError(
        f"the run's card {config.device.uuid} is not here; here: {here}",
        f"move the run with --set device.uuid={cards[0].uuid or '<uuid>'}",
    )


def _shortcomings(config: RunConfig, card: Card) -> str | None:
    """Why `card` will not do for the preset, or None."""
    need = config.card
    if need is None:
        return None
    if card.compute_capability is None or card.compute_capability < _capability(need):
        return f"compute capability {card.capability_text or NOT_AVAILABLE}"
    memory = _usable_bytes(config, card)
    if memory is None or memory < need.memory_gib * GIB:
        return f"{_gib(memory)} memory"
    return None


def _usable_bytes(config: RunConfig, card: Card) -> float | None:
    """The card's memory, or the part of it that a simulated smaller card has."""
    limit = config.device.memory_limit_gib
    if card.memory_total_bytes is None or limit is None:
        return card.memory_total_bytes
    return min(card.memory_total_bytes, limit * GIB)


class _Refusal(NamedTuple):
    """What a refusal needs to know about the request."""

    config: RunConfig
    name: str
    has_cpu_twin: bool

    def of(self, cards: Sequence[Card]) -> DoesNotFitError:
        """One line: what the preset needs, what is here, and what to do instead."""
        need = self.config.card
        wanted = "a CUDA card"
        if need is not None:
            wanted = f"a CUDA card with compute capability {need.compute_capability} and {need.memory_gib:g} GiB"
        here = _describe(self.config, _best(cards)) if cards else "no CUDA card"
        preset = shlex.quote(safe_text(self.name))
        small = "--cpu-twin" if self.has_cpu_twin else "--set device.kind=cpu"
        regardless = "here all the same: add --force; " if cards and need is not None else ""
        return DoesNotFitError(
            f"preset {safe_text(self.name)} needs {wanted}; here: {here}",
            f"{regardless}on the CPU: gpuworkbench --headless --preset {preset} {small}",
        )


def _best(cards: Sequence[Card]) -> Card:
    return max(cards, key=lambda card: (card.compute_capability or (0, 0), card.memory_total_bytes or 0))


def _describe(config: RunConfig, card: Card) -> str:
    simulated = "" if config.device.memory_limit_gib is None else ", capped by device.memory_limit_gib"
    return (
        f"{safe_text(card.name or 'a card')} with compute capability {card.capability_text or NOT_AVAILABLE} "
        f"and {_gib(_usable_bytes(config, card))}{simulated}"
    )


def _capability(need: CardConfig) -> tuple[int, int]:
    major, minor = need.compute_capability.split(".")
    return int(major), int(minor)


def _gib(num_bytes: float | None) -> str:
    return NOT_AVAILABLE if num_bytes is None else f"{num_bytes / GIB:.1f} GiB"


def _count(cards: int) -> str:
    return "1 CUDA card is" if cards == 1 else f"{cards} CUDA cards are"
