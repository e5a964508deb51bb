"""The strategy behind memory.optimizer_in_backward: a gradient is used up as soon as it is there, and freed.

torch calls a hook when a parameter's gradient is complete, tied uses added up; the layers behind are done with the
parameter by then. The hook lets the optimizer see this one parameter, so the arithmetic is the ordinary step's, in
another order: bit for bit the same, since no parameter's update looks at another's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError
from gpuworkbench.memory.strategy import Strategy, StrategyContext


class OptimizerInBackward(Strategy):
    """Updates within backward. The gradient norm is added up on the way, on the device."""

    name = "optimizer_in_backward"

    def __init__(self) -> None:
        self._squares: list[Tensor] = []  # of this step's gradients: 0-dim each

    @classmethod
    def from_config(cls, config: RunConfig) -> OptimizerInBackward | None:
        """As memory.optimizer_in_backward says."""
        return cls() if config.memory.optimizer_in_backward else None

    def attach(self, context: StrategyContext) -> None:
        """Hang a hook on every parameter."""
        self.optimizer = context.optimizer
        for index, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(lambda p, index=index: self._update(p, index))

    def grad_norm(self) -> Tensor | None:
        """The norm of all gradients since the last call, 0-dim; None without any."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum().sqrt() if squares else None

    def before_load(self) -> None:
        """What this step did is overwritten."""
        self._squares = []

    @torch.no_grad()
    def _update(self, parameter: Tensor, index: int) -> None:
        assert parameter.grad is not None
        self._squares.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square())
        groups = self.optimizer.param_groups
        everything = [group["params"] for group in groups]
        try:
            for group in groups:
                group["params"] = []
            groups[index]["params"] = [parameter]
            self.optimizer.step()
        finally:
            for group, parameters in zip(groups, everything, strict=True):
                group["params"] = parameters
        parameter.grad = None


def refuse_scaler(*, needs_scaler: bool, strategies: list[Strategy]) -> None:
    """ConfigError where fp16 needs a loss scaler, which looks at all gradients before the update."""
    if needs_scaler and any(isinstance(strategy, OptimizerInBackward) for strategy in strategies):
        raise ConfigError(
            "memory.optimizer_in_backward: this card computes in fp16, whose loss scaler needs all gradients at once",
            "set memory.precision = 'fp32', or memory.optimizer_in_backward = false",
        )
