"""fp32 values in 24 bits (a bf16 weight and an 8-bit residual) or in 16, rounded to nearest or at random.

Everything is integer arithmetic on the bits of IEEE numbers, where the magnitude grows with the integer: adding to the
bits and cutting the lowest ones off rounds, carries into the exponent included. With a uniform random number added the
rounding is unbiased: a value goes up with the probability of its distance from below (Gupta et al. 2015, "Deep learning
with limited numerical precision"). Inf stays Inf and the NaNs that arithmetic makes stay NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

RESIDUAL_BITS = 8
DROPPED_BITS = 8  # of fp32's 32, beyond a bf16 weight and its residual
BF16_DROPPED_BITS = 16


def split(value: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """fp32 -> (bf16 weight, int8 residual), 24 bits together: 16 significant ones, an error of 2^-16 at most.

    The weight is the 24-bit value rounded to nearest. `noise`: int32 in [0, 256), for unbiased rounding; None rounds
    to nearest. Exact where the value has no more than 24 bits.
    """
    bits = value.view(torch.int32) + (noise if noise is not None else 1 << (DROPPED_BITS - 1))
    bits >>= DROPPED_BITS
    weight = (bits + (1 << (RESIDUAL_BITS - 1))) >> RESIDUAL_BITS
    residual = bits.sub_(weight << RESIDUAL_BITS).to(torch.int8)
    return weight.to(torch.int16).view(torch.bfloat16), residual


def join(weight: Tensor, residual: Tensor) -> Tensor:
    """The fp32 value that `split` made into these two, exactly."""
    bits = weight.view(torch.int16).to(torch.int32) << RESIDUAL_BITS
    return (bits.add_(residual) << DROPPED_BITS).view(torch.float32)


def round_to_bf16(value: Tensor, noise: Tensor) -> Tensor:
    """fp32 -> bf16, up or down at random with the right expectation; `noise`: int32 in [0, 65536)."""
    bits = (value.view(torch.int32) + noise) >> BF16_DROPPED_BITS
    return bits.to(torch.int16).view(torch.bfloat16)
