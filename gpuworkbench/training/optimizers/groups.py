"""Which parameter is what, and parameter groups that say how their rate scales and what state they keep.

A group has, beside torch's own entries: `lr_ratio`, its rate as a multiple of the scheduled one; and `state`, the name
of what it keeps for each parameter (config/optimizers.py), against which a checkpoint is checked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from gpuworkbench.config.optimizers import Role
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.models.base import LanguageModel

Group = dict[str, Any]


class RoleParameter(NamedTuple):
    """A trainable parameter and what it is."""

    role: Role
    parameter: nn.Parameter


def trainable_by_role(model: nn.Module) -> list[RoleParameter]:
    """Every trainable parameter once (tied ones too), in the model's order.

    Tables are the parameters of nn.Embedding modules and the head's matrix, tied or not. Matrices with more than two
    dimensions count as tables: Muon is not for them.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    if isinstance(model, LanguageModel):
        tables.add(id(model.head_weight))
    return [RoleParameter(_role(p, id(p) in tables), p) for p in model.parameters() if p.requires_grad]


def groups_by_decay(parameters: list[RoleParameter], config: OptimizerConfig, state: str) -> list[Group]:
    """Matrices with weight decay and vectors without, as far as there are any."""
    matrices = [p for role, p in parameters if role != "vector"]
    vectors = [p for role, p in parameters if role == "vector"]
    groups: list[Group] = [
        {"params": matrices, "weight_decay": config.weight_decay, "lr_ratio": 1.0, "state": state},
        {"params": vectors, "weight_decay": 0.0, "lr_ratio": 1.0, "state": state},
    ]
    return [group for group in groups if group["params"]]


def _role(parameter: nn.Parameter, is_table: bool) -> Role:
    if parameter.dim() < 2:
        return "vector"
    return "table" if is_table or parameter.dim() > 2 else "hidden"
