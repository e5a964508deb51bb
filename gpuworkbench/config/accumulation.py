"""Micro-batch and accumulation that keep the tokens of a step, when memory asks for a smaller micro-batch.

Gradients of the micro-batches are added up as parts of one mean (each loss is divided before backward), so a step is
the same update, up to rounding, however it is cut. The other convention, a sum with the learning rate divided by the
number of micro-batches, is the same for plain SGD alone: Adam's update hardly depends on the gradient's scale (by `eps`
alone), so dividing the rate would slow it down, and clipping would act on a norm that grows with the accumulation.
"""

from __future__ import annotations

from typing import NamedTuple

from gpuworkbench.config.schema import RunConfig


class Accumulation(NamedTuple):
    """Values of the keys of the same names in [train]."""

    micro_batch_size: int
    grad_accum_steps: int


def same_tokens(config: RunConfig, micro_batch_size: int) -> Accumulation:
    """A step of as many sequences as `config` has, in micro-batches of at most `micro_batch_size`.

    The micro-batch becomes the largest divisor of the step's sequences that is not larger. Raises ValueError below 1.
    """
    if micro_batch_size < 1:
        raise ValueError(f"a micro-batch of {micro_batch_size} sequences")
    sequences = config.train.micro_batch_size * config.train.grad_accum_steps
    size = next(size for size in range(min(micro_batch_size, sequences), 0, -1) if sequences % size == 0)
    return Accumulation(size, sequences // size)
