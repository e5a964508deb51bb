"""The arithmetic of AdamW on fp32 tensors, operation by operation that of torch.optim.AdamW(foreach=False)."""

from __future__ import annotations

from torch import Tensor

from gpuworkbench.memory.adam_formats import Values
from gpuworkbench.training.optimizers.groups import Group


def adamw_(values: Values, grad: Tensor, step: int, group: Group) -> None:
    """One step (1 is the first) in place, with the group's rate, betas, eps and decay; all fp32 and of one shape."""
    weight, m, v = values
    beta1, beta2 = group["betas"]
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    weight.addcdiv_(m, denominator, value=-(group["lr"] / (1 - beta1**step)))
