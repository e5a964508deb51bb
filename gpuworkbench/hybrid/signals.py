"""What every component that watches training is told of a true step, in order."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "variance")


class StepSignals(NamedTuple):
    """One finished true step. The statistics of the optimizer's moments are NaN where nobody asked for them or the
    optimizer keeps none in that form."""

    step: int
    max_steps: int
    phase: str
    loss: float  # NaN where the step had no scored token
    grad_norm: float
    lr: float
    m_mean: float = math.nan
    m_std: float = math.nan
    v_mean: float = math.nan
    v_std: float = math.nan


class Watches(Protocol):
    """A component that learns from true steps."""

    def observe(self, signals: StepSignals) -> None:
        """One more step; called in the order of the steps."""


@torch.no_grad()
def moment_statistics(optimizer: torch.optim.Optimizer, device: torch.device) -> Tensor:
    """Mean and standard deviation of all first and of all second moments, (4,) fp32 on `device`, without a sync."""
    parts = []
    # In the groups' order: that of `state` is another after a resume, and so would the sums' last bits be.
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    for keys in (FIRST_MOMENTS, SECOND_MOMENTS):
        moments = [state[key] for state in states for key in keys if isinstance(state.get(key), Tensor)]
        moments = [moment for moment in moments if moment.is_floating_point() and moment.device.type == device.type]
        if not moments:
            parts.append(torch.full((2,), math.nan, device=device))
            continue
        count = sum(moment.numel() for moment in moments)
        mean = torch.stack([moment.sum(dtype=torch.float32) for moment in moments]).sum() / count
        norms = torch.stack([torch.linalg.vector_norm(moment, dtype=torch.float32) for moment in moments])
        variance = (norms.square().sum() / count - mean.square()).clamp(min=0)
        parts.append(torch.stack((mean, variance.sqrt())))
    return torch.cat(parts)
