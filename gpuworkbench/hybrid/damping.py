"""Optimizer moments after a jump: kept by default, or made smaller, since they belong to the path before it."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def damp_moments(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply every moment by `factor`. Step counts stay, so that Adam's bias correction does.

    An optimizer that keeps moments in a format of its own offers `damp_moments(factor)`.
    """
    own = getattr(optimizer, "damp_moments", None)
    if own is not None:
        own(factor)
        return
    for state in optimizer.state.values():
        for key, value in state.items():
            if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                value.mul_(factor)
