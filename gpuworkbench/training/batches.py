"""Batches as tensors on the device. The order is `gpuworkbench.data.order`'s; nothing here has state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from gpuworkbench.config.curriculum import Place
from gpuworkbench.data import TokenArray
from gpuworkbench.data.order import SampleOrder, batch, cut, validation_batch
from gpuworkbench.models.head import IGNORE_INDEX


class MicroBatch(NamedTuple):
    """Inputs and targets (B, T) int64; where there is a mask, scored tokens and their share of the step's (scalars)."""

    x: torch.Tensor
    y: torch.Tensor
    scored: torch.Tensor | None = None
    share: torch.Tensor | None = None  # None: 1 / grad_accum_steps


class TrainBatches:
    """Training batches as a pure function of the number of sequences consumed before them.

    The last `reserved_tokens` tokens are in none of them.
    """

    def __init__(
        self,
        tokens: TokenArray,
        seq_len: int,
        seed: int,
        batch_size: int,
        device: torch.device,
        *,
        reserved_tokens: int = 0,
    ) -> None:
        self.tokens = tokens
        self.order = SampleOrder(len(tokens) - reserved_tokens, seq_len, seed)
        self.batch_size = batch_size
        self.device = device

    def at(self, position: int, place: Place | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets (B, T) int64 of the micro-batch from sequence `position` on, whole or as `place` says."""
        size, part = self.batch_size, None
        if place is not None:
            size, part = place.stage.micro_batch_size, (place.stage.seq_len, place.part)
        x, y = batch(self.tokens, self.order, position, size, part)
        return to_device(x, self.device), to_device(y, self.device)

    @property
    def has_mask(self) -> bool:
        """Whether tokens may not be scored, so that micro-batches weigh differently."""
        return self.tokens.has_mask

    def of_step(self, position: int, place: Place) -> Iterator[MicroBatch]:
        """The micro-batches of the optimizer step whose sequences begin at `position`, weighted so that their sum is
        the mean over all scored tokens of the step; shares stay on the device."""
        rows = place.stage.micro_batch_size
        batches = (self.at(position + number * rows, place) for number in range(place.stage.grad_accum_steps))
        if not self.has_mask:
            return (MicroBatch(x, y) for x, y in batches)
        held = list(batches)
        counts = torch.stack([(y != IGNORE_INDEX).sum() for _, y in held])
        shares = counts.double() / counts.sum().clamp(min=1)
        return (MicroBatch(*xy, count, share) for xy, count, share in zip(held, counts, shares, strict=True))


def probe_sequences(
    tokens: TokenArray, seq_len: int, count: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The last `count` windows of the training tokens, which `reserved_tokens` keeps out of training: (1, T) each."""
    first = len(tokens) - count * seq_len - 1
    starts = np.arange(count, dtype=np.int64) * seq_len + first
    pairs = (cut(tokens, starts[row : row + 1], seq_len) for row in range(count))
    return [(to_device(x, device), to_device(y, device)) for x, y in pairs]


def validation_batches(
    tokens: TokenArray, seq_len: int, batch_size: int, n_batches: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same `n_batches` contiguous batches (B, T) at every validation."""
    for index in range(n_batches):
        x, y = validation_batch(tokens, index, batch_size, seq_len)
        yield to_device(x, device), to_device(y, device)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A numpy batch as a tensor; to CUDA through pinned memory without a sync."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
