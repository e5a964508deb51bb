"""Adafactor (Shazeer and Stern 2018): a second moment of a row and a column a matrix, and no first moment.

With g the gradient, r and c the row and column means of g^2 averaged at rate beta2(t) = 1 - t^decay (equation 1,
algorithm 4), the update of a matrix is

    u = g / sqrt(r c^T / mean(r));  u = u / max(1, RMS(u) / d);  w = w - lr max(1e-3, RMS(w)) u

where the factor with RMS(w) is there with `relative_step` only (section 8). Vectors keep their whole second moment.
The rate comes from the schedule: the paper's own is schedule.name = inverse_sqrt. torch.optim.Adafactor computes the
same and reads two scalars of every tensor back to the host at every step; nothing here waits for the card.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpuworkbench.config.optimizers import factored_state, setting
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.training.optimizers.groups import Group, RoleParameter, groups_by_decay

EPS1 = 1e-30  # added to squared gradients
EPS2 = 1e-3  # the least size that a tensor counts as having, for relative steps


class Adafactor(torch.optim.Optimizer):
    """Adafactor with decoupled weight decay.

    State: `step` (fp32, on the host), and `row_var` (..., R, 1) with `col_var` (..., 1, C), or `variance` of a vector.
    """

    def __init__(
        self,
        params: list[Group],
        lr: float,
        *,
        beta2_decay: float = -0.8,
        clip_threshold: float = 1.0,
        relative_step: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "clip_threshold": clip_threshold,
            "relative_step": relative_step,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is torch's interface and is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: Group) -> None:
        state = self.state[parameter]
        if not state:
            for key, shape in factored_state(tuple(parameter.shape)).items():
                state[key] = parameter.new_zeros(shape) if shape else torch.tensor(0.0)
        state["step"] += 1
        rate = float(state["step"]) ** group["beta2_decay"]  # 1 - beta2
        update = _preconditioned(grad, state, rate)
        clipped = (_rms(update) / group["clip_threshold"]).clamp_(min=1.0)
        scale = _rms(parameter).clamp_(min=EPS2) / clipped if group["relative_step"] else clipped.reciprocal_()
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update.mul_(scale * group["lr"]))


def _preconditioned(grad: Tensor, state: dict[str, Tensor], rate: float) -> Tensor:
    """The gradient over the root of its second moment, which takes this gradient in first."""
    squared = grad.square().add_(EPS1)
    if "variance" in state:
        return state["variance"].lerp_(squared, rate).rsqrt().mul_(grad)
    rows = state["row_var"].lerp_(squared.mean(dim=-1, keepdim=True), rate)
    columns = state["col_var"].lerp_(squared.mean(dim=-2, keepdim=True), rate)
    # Each factor by itself: the product of two of them can be too small for a float.
    row_factor = (rows / rows.mean(dim=-2, keepdim=True)).rsqrt_()
    return torch.mul(grad, row_factor, out=squared).mul_(columns.rsqrt())


def _rms(tensor: Tensor) -> Tensor:
    """Root mean square, 0-dim."""
    return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5


def build(parameters: list[RoleParameter], config: OptimizerConfig, device: torch.device) -> Adafactor:
    """Adafactor over all parameters, decay on matrices only."""
    return Adafactor(
        groups_by_decay(parameters, config, "factored"),
        config.lr,
        beta2_decay=float(setting(config, "beta2_decay")),
        clip_threshold=float(setting(config, "clip_threshold")),
        relative_step=bool(setting(config, "relative_step")),
    )
