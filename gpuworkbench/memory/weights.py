"""Trainable weights as fp32 values, whatever format holds them: what predictors read, move and undo."""

from __future__ import annotations

import torch
from torch import Tensor


class Weights:
    """Weights that are held as they are: fp32 (or bf16 without a residual).

    An optimizer with a format of its own (packed masters, masters on the host) offers its own subclass as `weights`.
    """

    def read(self, parameter: Tensor) -> Tensor:
        """The value in fp32, of the parameter's shape; a view where the format is fp32, so do not write to it."""
        return parameter.detach().float()

    @torch.no_grad()
    def write(self, parameter: Tensor, value: Tensor) -> None:
        """Make `value` (fp32) the parameter's value, as exactly as the format can."""
        parameter.copy_(value)

    def raw(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """Every tensor that holds the value: copied and copied back, the parameter is restored bit for bit."""
        return (parameter.detach(),)


def weights_of(optimizer: torch.optim.Optimizer) -> Weights:
    """How the parameters of this optimizer are read and written."""
    own = getattr(optimizer, "weights", None)
    return own if isinstance(own, Weights) else Weights()
