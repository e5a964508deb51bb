"""A tensor by its largest directions: a randomised range finder with power iterations, the same for the same tensor.

Halko, Martinsson, Tropp 2011, Finding structure with randomness, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RANK = 4
OVERSAMPLING = 4
POWER_ITERATIONS = 2
SEED = 20110503


class LowRank(NamedTuple):
    """left (m, r) @ right (r, n) stands for a matrix m x n; a vector is kept whole in `left`, `right` empty."""

    left: Tensor
    right: Tensor
    shape: tuple[int, ...]
    error: float  # Frobenius norm of what is missing, over that of the tensor

    @property
    def num_bytes(self) -> int:
        """What it holds."""
        return self.left.nbytes + self.right.nbytes

    @property
    def ratio(self) -> float:
        """Bytes of the fp32 tensor over bytes held: how many times smaller."""
        size = 4
        for length in self.shape:
            size *= length
        return size / max(self.num_bytes, 1)

    def full(self) -> Tensor:
        """The tensor again, fp32, as nearly as it is kept."""
        left, right = self.left.float(), self.right.float()
        return (left @ right if right.numel() else left).reshape(self.shape)


def compress(tensor: Tensor, rank: int = RANK, dtype: torch.dtype = torch.bfloat16) -> LowRank:
    """`tensor` (any shape; beyond two dimensions the last ones are joined) as factors of `rank` in `dtype`."""
    shape = tuple(tensor.shape)
    matrix = tensor.detach().float().reshape(shape[0] if shape else 1, -1)
    m, n = matrix.shape
    if min(m, n) <= rank or len(shape) < 2:
        kept = matrix.to(dtype)
        return _measured(LowRank(kept, kept.new_empty(0), shape, 0.0), matrix)
    generator = torch.Generator().manual_seed(SEED)
    sketch = torch.randn(n, min(rank + OVERSAMPLING, m, n), generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ sketch).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = s[:rank].sqrt()
    left = (basis @ (u[:, :rank] * root)).to(dtype)
    return _measured(LowRank(left, (root[:, None] * vh[:rank]).to(dtype), shape, 0.0), matrix)


def _measured(kept: LowRank, matrix: Tensor) -> LowRank:
    norm = float(matrix.norm())
    missing = float((kept.full().reshape(matrix.shape) - matrix).norm())
    return kept._replace(error=missing / norm if norm > 0.0 else 0.0)
