"""The most arithmetic a card can do, as its maker publishes it: what model FLOPs utilisation (MFU) is measured against.

Dense tensor-core figures with fp32 accumulation, the way training multiplies; at the boost clock of the reference
card. Sources: NVIDIA's architecture whitepapers (Turing, Ampere GA102, Ada, Blackwell RTX; A100, H100).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_PREFIXES = ("nvidia ", "geforce ")


class _Card(NamedTuple):
    """CUDA cores, boost clock, and how many times the fp32 rate (2 FLOPs a core and clock) the tensor cores reach."""

    cores: int
    boost_mhz: int
    half_ratio: int  # fp16 and, from Ampere on, bf16
    has_bf16: bool = True


def _turing(cores: int, boost_mhz: int) -> _Card:
    return _Card(cores, boost_mhz, 4, has_bf16=False)


def _geforce(cores: int, boost_mhz: int) -> _Card:
    """Ampere, Ada and Blackwell GeForce cards multiply half precision at twice the fp32 rate."""
    return _Card(cores, boost_mhz, 2)


_CARDS: Mapping[str, _Card] = {
    "rtx 2060": _turing(1920, 1680),
    "rtx 2060 super": _turing(2176, 1650),
    "rtx 2070": _turing(2304, 1620),
    "rtx 2070 super": _turing(2560, 1770),
    "rtx 2080": _turing(2944, 1710),
    "rtx 2080 super": _turing(3072, 1815),
    "rtx 2080 ti": _turing(4352, 1545),
    "rtx 3050": _geforce(2560, 1777),
    "rtx 3060": _geforce(3584, 1777),
    "rtx 3060 ti": _geforce(4864, 1665),
    "rtx 3070": _geforce(5888, 1725),
    "rtx 3070 ti": _geforce(6144, 1770),
    "rtx 3080": _geforce(8704, 1710),
    "rtx 3080 ti": _geforce(10240, 1665),
    "rtx 3090": _geforce(10496, 1695),
    "rtx 3090 ti": _geforce(10752, 1860),
    "rtx 4060": _geforce(3072, 2460),
    "rtx 4060 ti": _geforce(4352, 2535),
    "rtx 4070": _geforce(5888, 2475),
    "rtx 4070 super": _geforce(7168, 2475),
    "rtx 4070 ti": _geforce(7680, 2610),
    "rtx 4070 ti super": _geforce(8448, 2610),
    "rtx 4080": _geforce(9728, 2505),
    "rtx 4080 super": _geforce(10240, 2550),
    "rtx 4090": _geforce(16384, 2520),
    "rtx 5060": _geforce(3840, 2497),
    "rtx 5060 ti": _geforce(4608, 2572),
    "rtx 5070": _geforce(6144, 2512),
    "rtx 5070 ti": _geforce(8960, 2452),
    "rtx 5080": _geforce(10752, 2617),
    "rtx 5090": _geforce(21760, 2407),
    "a100-sxm4-40gb": _Card(6912, 1410, 16),
    "a100-sxm4-80gb": _Card(6912, 1410, 16),
    "h100 80gb hbm3": _Card(16896, 1830, 16),
    "h200": _Card(16896, 1830, 16),
}


def peak_flops(card_name: str | None, precision: str) -> float | None:
    """FLOPs a second of matrix products in `precision` (fp32, bf16, fp16); None where this table does not know.

    The card must be named in full: a laptop's card of the same number is another one. A MIG instance is unknown too.
    """
    card = _CARDS.get(_short(card_name or ""))
    if card is None or (precision == "bf16" and not card.has_bf16) or precision not in ("fp32", "bf16", "fp16"):
        return None
    fp32 = 2.0 * card.cores * card.boost_mhz * 1e6
    return fp32 if precision == "fp32" else fp32 * card.half_ratio


def _short(name: str) -> str:
    name = " ".join(name.lower().split())
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
