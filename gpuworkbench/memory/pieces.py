"""Going through a parameter in pieces, so that fp32 copies of it are never there as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from gpuworkbench.config.optimizers import MOMENT_BLOCK as BLOCK
from gpuworkbench.config.storage import UPDATE_ELEMENTS


class Piece(NamedTuple):
    """`rows` blocks of `width` consecutive elements from element `start`, the first of them block `block`."""

    start: int
    block: int
    rows: int
    width: int

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of a contiguous tensor, as a view (rows, width)."""
        return tensor.view(-1)[self.start : self.start + self.rows * self.width].view(self.rows, self.width)

    def scales_of(self, tensor: Tensor) -> Tensor:
        """Its blocks of a tensor with an element a block, as a view (rows, 1)."""
        return tensor[self.block : self.block + self.rows].unsqueeze(1)


def pieces(num_elements: int, most: int = UPDATE_ELEMENTS) -> Iterator[Piece]:
    """Whole blocks of 256, at most `most` elements at a time, then the block that is shorter, where there is one."""
    whole, rest = divmod(num_elements, BLOCK)
    step = max(most // BLOCK, 1)
    for block in range(0, whole, step):
        yield Piece(block * BLOCK, block, min(step, whole - block), BLOCK)
    if rest:
        yield Piece(whole * BLOCK, whole, 1, rest)


def num_blocks(num_elements: int) -> int:
    """Blocks of a tensor, the shorter one included."""
    return -(-num_elements // BLOCK)
