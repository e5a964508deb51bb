"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2): the sign of a momentum.

    c = beta1 m + (1 - beta1) g
    w = w - lr (sign(c) + weight_decay w)
    m = beta2 m + (1 - beta2) g

Every element moves by lr, so rates are 3 to 10 times lower than AdamW's, and weight decay as much higher. One moment
is kept instead of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpuworkbench.config.optimizers import setting
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.training.optimizers.groups import Group, RoleParameter, groups_by_decay


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay. State: `exp_avg`, of the parameter's shape and type."""

    def __init__(self, params: list[Group], lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is torch's interface and is not used."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                average = state["exp_avg"]
                direction = average.lerp(parameter.grad, 1 - beta1).sign_()
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"])
                average.lerp_(parameter.grad, 1 - beta2)


def build(parameters: list[RoleParameter], config: OptimizerConfig, device: torch.device) -> Lion:
    """Lion over all parameters, decay on matrices only."""
    betas = float(setting(config, "beta1")), float(setting(config, "beta2"))
    return Lion(groups_by_decay(parameters, config, "lion"), config.lr, betas)
