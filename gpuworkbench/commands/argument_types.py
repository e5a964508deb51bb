"""Types of command-line arguments: the value of a word, or an ArgumentTypeError in a few words."""

from __future__ import annotations

import argparse

from gpuworkbench.units import parse_count


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    value = natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give a whole number from 1 on")
    return value


def token_count(text: str) -> int:
    """A number of tokens from 1 on, also as 1e9, 10B or 1_000_000."""
    try:
        value = parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if value < 1:
        raise argparse.ArgumentTypeError("give a whole number from 1 on, such as 1e9 or 10B")
    return value


def temperature(text: str) -> float:
    """0 to 100."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a number") from None
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError("give a number from 0 to 100")
    return value
