"""Random numbers for rounding: a pure function of a seed, a step and a parameter.

A generator is seeded anew for each parameter and step, so there is no state to save, and the order in which parameters
are updated (all at the end, or one by one in backward) changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """Numbers -> 63 well-mixed bits (the finaliser of splitmix64, Steele et al. 2014, over a running sum)."""
    z = 0
    for number in numbers:
        z = (z + number + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z >> 1


def generator(device: torch.device, seed: int, step: int, index: int) -> torch.Generator:
    """The generator of one parameter's rounding at one step."""
    return torch.Generator(device).manual_seed(mix(seed, step, index))


def random_bits(like: Tensor, source: torch.Generator) -> Tensor:
    """int32 of the shape of `like`, 31 random bits each."""
    return torch.empty(like.shape, dtype=torch.int32, device=like.device).random_(generator=source)
