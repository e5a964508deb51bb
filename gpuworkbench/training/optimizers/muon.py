"""Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): an orthogonal momentum.

    m = momentum m + (1 - momentum) g;  u = g + momentum (m - g) with nesterov, else m
    w = w (1 - lr weight_decay) - lr a O(u)

O brings every singular value of u near 1 by `ns_steps` Newton-Schulz iterations: in bf16 on a card, in fp32 on a CPU,
where products in bf16 can take many times as long. a is sqrt(max(1, R / C)) for
lr_adjust = original, and 0.2 sqrt(max(R, C)) for match_rms_adamw (Liu et al. 2025, "Muon is Scalable for LLM
Training"), with which an update is as large as AdamW's, so that AdamW's rates and decays hold.

It is for matrices between hidden states. Embeddings, positions, norms, biases and the head go to AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpuworkbench.config.optimizers import setting
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.training.optimizers.adamw import adamw
from gpuworkbench.training.optimizers.combined import Combined
from gpuworkbench.training.optimizers.groups import Group, RoleParameter, groups_by_decay

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_EPS = 1e-7


def orthogonalized(matrix: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The polar factor of `matrix` (R, C), roughly, as `dtype`: singular values between about 0.7 and 1.2.

    Newton-Schulz iteration with the quintic a x + b x^3 + c x^5, which is steepest at 0 rather than exact at 1.
    """
    a, b, c = NS_COEFFICIENTS
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.to(dtype)
    if is_tall:
        x = x.T
    x = x / x.norm().clamp(min=NS_EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """What torch.optim.Muon (from 2.9 on) computes, bit for bit where `ns_dtype` is bf16.

    State: `momentum_buffer`, of the parameter's shape.
    """

    def __init__(
        self,
        params: list[Group],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adjust_lr_fn: str,
        ns_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "ns_dtype": ns_dtype,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is torch's interface and is not used."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                update = orthogonalized(update, group["ns_steps"], group["ns_dtype"])
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * _adjustment(group["adjust_lr_fn"], *parameter.shape))


def _adjustment(lr_adjust: str, rows: int, columns: int) -> float:
    if lr_adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def muon_class(device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """Ours in fp32 on a CPU; elsewhere torch's Muon where there is one, else ours in its bf16."""
    if device.type == "cpu":
        return partial(Muon, ns_dtype=torch.float32)
    return getattr(torch.optim, "Muon", Muon)


def build(parameters: list[RoleParameter], config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """Muon for hidden matrices and AdamW at `adamw_lr_ratio` times the rate for all else."""
    hidden = [each for each in parameters if each.role == "hidden"]
    others = groups_by_decay([each for each in parameters if each.role != "hidden"], config, "adam")
    ratio = float(setting(config, "adamw_lr_ratio"))
    for group in others:
        group["lr_ratio"] = ratio
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(
            muon_class(device)(
                groups_by_decay(hidden, config, "momentum"),
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=float(setting(config, "momentum")),
                nesterov=bool(setting(config, "nesterov")),
                ns_steps=int(setting(config, "ns_steps")),
                adjust_lr_fn=str(setting(config, "lr_adjust")),
            )
        )
    if others:
        optimizers.append(adamw(others, config, device))
    return Combined(optimizers)
