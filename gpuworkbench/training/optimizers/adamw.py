"""AdamW (Loshchilov and Hutter 2019) in one kernel a tensor list where torch has it."""

from __future__ import annotations

import torch

from gpuworkbench.config.optimizers import setting
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.training.optimizers.groups import Group, RoleParameter, groups_by_decay

FUSED_DEVICES = ("cpu", "cuda")


def build(parameters: list[RoleParameter], config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all parameters, decay on matrices only."""
    return adamw(groups_by_decay(parameters, config, "adam"), config, device)


def adamw(groups: list[Group], config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over these groups, with the config's moments."""
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(float(setting(config, "beta1")), float(setting(config, "beta2"))),
        eps=float(setting(config, "eps")),
        fused=device.type in FUSED_DEVICES,
    )
