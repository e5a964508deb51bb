"""Gradient descent with momentum: torch.optim.SGD. Its weight decay is added to the gradient, as L2 regularisation."""

from __future__ import annotations

import torch

from gpuworkbench.config.optimizers import setting, spec_of
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.training.optimizers.groups import RoleParameter, groups_by_decay


def build(parameters: list[RoleParameter], config: OptimizerConfig, device: torch.device) -> torch.optim.SGD:
    """SGD over all parameters, decay on matrices only.

    Not the fused kernel: where the loss scaler skips the very first step, it leaves the momentum buffer unset and
    reads it at the next.
    """
    return torch.optim.SGD(
        groups_by_decay(parameters, config, spec_of(config.name).state(config, "hidden")),
        lr=config.lr,
        momentum=float(setting(config, "momentum")),
        nesterov=bool(setting(config, "nesterov")),
        fused=False,
        foreach=device.type == "cuda",
    )
