"""In what a small AdamW keeps a parameter and its moments: read a piece as fp32, write it back rounded at random."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from gpuworkbench.memory.bits import join, round_to_bf16, split
from gpuworkbench.memory.moments import decode_m, decode_v, encode_m, encode_v
from gpuworkbench.memory.pieces import Piece, num_blocks

State = dict[str, Tensor]


class Values(NamedTuple):
    """fp32 (rows, width) each, owned by whoever reads them."""

    weight: Tensor
    m: Tensor
    v: Tensor


class AdamFormat(Protocol):
    """`state` names the tensors (config/optimizers.py); a fresh state stands for m = v = 0 and the weight as it is."""

    state: ClassVar[str]

    def fresh(self, parameter: Tensor) -> State:
        """State before the first step, without the step count."""

    def read(self, parameter: Tensor, state: State, piece: Piece) -> Values:
        """The values of a piece."""

    def write(self, parameter: Tensor, state: State, piece: Piece, values: Values, noise: Tensor) -> None:
        """Store them; `noise`: int32 (rows, width), 31 random bits each. Uses all of them up."""


class Packed:
    """bf16 weight + 8-bit residual, m and v in a byte each: 5 bytes and two scales a block of 256."""

    state: ClassVar[str] = "packed_adam"

    def fresh(self, parameter: Tensor) -> State:
        """All zeros."""
        scales = parameter.new_zeros(num_blocks(parameter.numel()), dtype=torch.float32)
        return {
            "residual": torch.zeros_like(parameter, dtype=torch.int8),
            "exp_avg": torch.zeros_like(parameter, dtype=torch.int8),
            "exp_avg_scale": scales,
            "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.uint8),
            "exp_avg_sq_scale": scales.clone(),
        }

    def read(self, parameter: Tensor, state: State, piece: Piece) -> Values:
        """Decode."""
        return Values(
            join(piece.of(parameter), piece.of(state["residual"])),
            decode_m(piece.of(state["exp_avg"]), piece.scales_of(state["exp_avg_scale"])),
            decode_v(piece.of(state["exp_avg_sq"]), piece.scales_of(state["exp_avg_sq_scale"])),
        )

    def write(self, parameter: Tensor, state: State, piece: Piece, values: Values, noise: Tensor) -> None:
        """Encode. Of the noise 8 bits are the weight's, 11 are m's and 12 are v's."""
        _store(state["exp_avg_sq"], state["exp_avg_sq_scale"], piece, encode_v(values.v, (noise >> 19) * 2.0**-12))
        m_noise = (noise >> 8).bitwise_and_(0x7FF) * 2.0**-11
        _store(state["exp_avg"], state["exp_avg_scale"], piece, encode_m(values.m, m_noise))
        weight, residual = split(values.weight, noise.bitwise_and_(0xFF))
        piece.of(parameter).copy_(weight)
        piece.of(state["residual"]).copy_(residual)


class Bf16:
    """Weight, m and v in bf16: 6 bytes."""

    state: ClassVar[str] = "adam"

    def fresh(self, parameter: Tensor) -> State:
        """All zeros."""
        return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}

    def read(self, parameter: Tensor, state: State, piece: Piece) -> Values:
        """Widen."""
        weight, m, v = (piece.of(each).to(torch.float32) for each in (parameter, state["exp_avg"], state["exp_avg_sq"]))
        return Values(weight, m, v)

    def write(self, parameter: Tensor, state: State, piece: Piece, values: Values, noise: Tensor) -> None:
        """Round each with bits of its own: the weight by 15, m and v by 8 each in their highest places."""
        piece.of(state["exp_avg_sq"]).copy_(round_to_bf16(values.v, (noise >> 23) << 8))
        piece.of(state["exp_avg"]).copy_(round_to_bf16(values.m, ((noise >> 15) & 0xFF) << 8))
        piece.of(parameter).copy_(round_to_bf16(values.weight, noise.bitwise_and_(0x7FFF) << 1))


def _store(codes: Tensor, scales: Tensor, piece: Piece, encoded: tuple[Tensor, Tensor]) -> None:
    piece.of(codes).copy_(encoded[0])
    piece.scales_of(scales).copy_(encoded[1])
