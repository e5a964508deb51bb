"""What a plan is held against: a card of a given size, the card here, or this host; and what else it has to fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpuworkbench.config.schema import CardConfig, RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError, UsageError
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.fit import DeviceChoice, select_device
from gpuworkbench.gpu.host import Host, disk_free_bytes
from gpuworkbench.text import safe_text
from gpuworkbench.units import GIB, MIB, parse_bytes

THIS_CARD = "this"
# Sizes that cards are sold in, as GiB: what a preset's card has when there is none here to ask.
SOLD_GIB = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141)
MIN_BYTES, MAX_BYTES = 64 * MIB, 1024 * 1024 * GIB
PINNED_SHARE = 0.8  # of the host's memory: drivers refuse to pin much more, and the rest of the system needs some
WSL_PINNED_BYTES = GIB  # WSL2 may refuse more


class Target(NamedTuple):
    """`limit_bytes` where the run computes, the rest as far as it counts for the verdict (None: it does not).

    `card` is the one that is meant, where it is here; `card_name` what figures of speed and power are looked up by.
    """

    kind: str  # cuda or cpu
    label: str
    limit_bytes: int | None
    card: Card | None = None
    card_name: str | None = None
    host_bytes: int | None = None
    pinned_bytes: int | None = None
    disk_bytes: int | None = None


def parse_card(text: str) -> int | None:
    """`16GiB` as bytes, `this` as None. Raises UsageError."""
    if text.strip().lower() == THIS_CARD:
        return None
    return parse_size(text, "--card", ", or this")


def parse_size(text: str, flag: str, others: str = "") -> int:
    """`16GiB` as bytes. `others`: what else the flag takes. Raises UsageError."""
    said = f"{flag} {text[:40]!r}"
    try:
        size = parse_bytes(text)
    except ValueError:
        size = 0
    if not size or text.strip().isdecimal():
        raise UsageError(f"{said} is no memory's size", f"give one with its unit, such as 16GiB{others}")
    if not MIN_BYTES <= size <= MAX_BYTES:
        than = "less" if size < MIN_BYTES else "more"
        raise UsageError(f"{said} is {than} than any run is planned for", f"give 64MiB to 1024TiB{others}")
    return size


def target_of(config: RunConfig, asked: str | None, cards: Sequence[Card], host: Host, directory: Path) -> Target:
    """What `config` is planned for: the card asked for, else the device it would get here, else its preset's card.

    With a size, or for a card that is not here, the verdict is that card's alone. Raises UsageError, ConfigError,
    DoesNotFitError where a card is asked for and none is known.
    """
    size = parse_card(asked) if asked is not None else None
    if size is not None:
        return Target("cuda", f"a card of {size / GIB:g} GiB", _capped(config, size), card_name=named_card(config))
    choice: DeviceChoice | None
    try:
        choice = select_device(config, cards)
    except DoesNotFitError:
        choice = select_device(config, cards, force=True) if cards else None
    if choice is not None and choice.kind == "cpu" and asked is not None:
        raise DoesNotFitError("no CUDA card is here", "plan for one that is not: --card 16GiB")
    if choice is None:
        return _absent(config, asked)
    return here(config, choice.card, host, directory)


def here(config: RunConfig, card: Card | None, host: Host, directory: Path, *, is_free_only: bool = False) -> Target:
    """This machine, computing on `card`, or on the host where that is None; `is_free_only`: what is free now."""
    host_bytes = host.memory_available_bytes if is_free_only or card is None else host.memory_total_bytes
    pinned = None if host.memory_total_bytes is None else int(host.memory_total_bytes * PINNED_SHARE)
    disk = disk_free_bytes(directory)
    if card is None:
        return Target("cpu", "this host", host_bytes, host_bytes=host_bytes, pinned_bytes=pinned, disk_bytes=disk)
    limit = usable_bytes(card, is_free_only=is_free_only)
    return Target(
        "cuda",
        f"this card, {safe_text(card.name or 'unnamed')}",
        None if limit is None else _capped(config, limit),
        card=card,
        card_name=card.name,
        host_bytes=host_bytes,
        pinned_bytes=pinned,
        disk_bytes=disk,
    )


def usable_bytes(card: Card, *, is_free_only: bool = False) -> int | None:
    """The card's memory without the desktop's share; with `is_free_only` no more than what is free now."""
    if card.memory_total_bytes is None:
        return None
    usable = card.memory_total_bytes - (card.desktop_memory_bytes or 0)
    if is_free_only and card.memory_free_bytes is not None:
        usable = min(usable, card.memory_free_bytes)
    return usable


def named_card(config: RunConfig) -> str | None:
    """The name of the preset's card without its size, for figures that makers publish by name."""
    return config.card.name.partition("(")[0].strip() if config.card else None


def sold_gib(card: CardConfig) -> float:
    """What the preset's card is sold with: as its name says, "RTX 5080 (16 GB)", else the next usual size above the
    memory that the preset needs."""
    named = re.search(r"\((\d{1,4}) GB\)", card.name)
    if named and int(named[1]) >= card.memory_gib:
        return int(named[1])
    return next((gib for gib in SOLD_GIB if gib >= card.memory_gib), card.memory_gib)


def _absent(config: RunConfig, asked: str | None) -> Target:
    """The preset's own card, which is not here."""
    if config.card is None or asked is not None:
        raise DoesNotFitError("no CUDA card is here", "plan for one that is not: --card 16GiB")
    size = sold_gib(config.card)
    label = f"a card of {size:g} GiB ({safe_text(config.card.name)}; it is not here)"
    return Target("cuda", label, _capped(config, int(size * GIB)), card_name=named_card(config))


def _capped(config: RunConfig, num_bytes: int) -> int:
    """No more than the simulated smaller card has."""
    cap = config.device.memory_limit_gib
    if cap is not None and config.device.kind == "cpu":
        raise ConfigError("device.memory_limit_gib caps a card's memory, and this run computes on the CPU")
    return num_bytes if cap is None else min(num_bytes, int(cap * GIB))
