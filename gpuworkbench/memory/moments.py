"""Adam's moments in a byte each: blocks that share an fp32 scale, companded before they are cut into steps.

FlashOptim (arXiv 2602.23349) compands m and takes the root of v before quantising both to 8 bits. Here both sides of
m / sqrt(v) are companded by the same square root, so both reach equally far down: with x = m / max|m| and
x = sqrt(v) / max sqrt(v) of a block, the code is sqrt(x) in steps of 1/127 (signed) and 1/255. The smallest m that is
not 0 is 4 times the smallest sqrt(v), in shares of their largest: rounding cannot make a small ratio into a huge step.
v is never rounded to 0, which would leave eps alone below the line.

Codes are rounded at random (unbiased): with decays of 0.9 to 0.999 a code rounded to nearest would stay where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

M_CODES = 127
V_CODES = 255
_SMALLEST = torch.finfo(torch.float32).tiny  # a block of zeros divides by this


def encode_m(m: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor]:
    """fp32 (blocks, width) -> int8 codes of that shape, fp32 scales (blocks, 1). Uses `m` up.

    `noise` in [0, 1): uniform for unbiased rounding, 0.5 to nearest. With y = sqrt(|m| / scale) in steps of 1/127 the
    error of m is below scale (2 y + 1/127) / 127, to nearest half of that in its first term.
    """
    scale = m.abs().amax(dim=1, keepdim=True)
    sign = m.sign()
    y = m.abs_().div_(scale.clamp(min=_SMALLEST)).sqrt_().mul_(M_CODES).mul_(sign)
    return y.add_(noise).floor_().clamp_(-M_CODES, M_CODES).to(torch.int8), scale


def decode_m(codes: Tensor, scale: Tensor) -> Tensor:
    """The fp32 values of `encode_m`."""
    y = codes.to(torch.float32).div_(M_CODES)
    return y.mul_(y.abs()).mul_(scale)


def encode_v(v: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor]:
    """fp32 (blocks, width), not negative -> uint8 codes from 1, fp32 scales (blocks, 1). Uses `v` up.

    Code c stands for scale (c / 255)^4: sqrt(v) is right to 2 / c of itself, to nearest to 1 / c.
    """
    scale = v.amax(dim=1, keepdim=True)
    y = v.div_(scale.clamp(min=_SMALLEST)).sqrt_().sqrt_().mul_(V_CODES)
    return y.add_(noise).floor_().clamp_(1, V_CODES).to(torch.uint8), scale


def decode_v(codes: Tensor, scale: Tensor) -> Tensor:
    """The fp32 values of `encode_v`."""
    return codes.to(torch.float32).div_(V_CODES).square_().square_().mul_(scale)
