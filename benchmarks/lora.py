"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the linear layers of a frozen model.

The product trains no adapters yet; this is what benchmarks.hybrid_lora measures the hybrid trainer on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpuworkbench.models.base import LanguageModel


class LoraLinear(nn.Module):
    """y = W x + b + (alpha / rank) B A x, with W and b frozen, A (rank, in) and B (out, rank).

    A begins as nn.Linear would (Kaiming, from `generator`), B at 0: the model begins as it was (section 4.1).
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.down), self.up) * self.scale


def add_adapters(model: LanguageModel, rank: int, alpha: float, seed: int) -> LanguageModel:
    """Freeze `model` and put an adapter on each linear layer of its blocks; the head and the tables have none."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(requires_grad=False)
    for block in model.blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear) and not isinstance(parent, LoraLinear):
                    setattr(parent, name, LoraLinear(layer, rank, alpha, generator))
    return model
