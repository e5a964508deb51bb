"""Weights stored in bf16: half the bytes of fp32 ones, and of their gradients.

The products run in bf16 anyway, so autocast has nothing left to copy; norms, softmax and loss are computed as autocast
says (in fp32 where precision counts), the residual stream is bf16. bf16 keeps 8 significant bits: an update below
1/512 of a weight is lost when it is rounded to nearest, which is what a residual, a master or stochastic rounding are
for.
"""

from __future__ import annotations

import torch
from torch import nn

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import storage_of
from gpuworkbench.errors import ConfigError
from gpuworkbench.memory.strategy import Strategy
from gpuworkbench.models.base import LanguageModel


class Bf16Weights(Strategy):
    """The strategy behind memory.weights = "bf16"."""

    name = "bf16_weights"

    def __init__(self, *, fp32_gradients: bool) -> None:
        self.fp32_gradients = fp32_gradients

    @classmethod
    def from_config(cls, config: RunConfig) -> Bf16Weights | None:
        """Gradients are fp32 where the update goes to fp32 masters."""
        if config.memory.weights != "bf16":
            return None
        return cls(fp32_gradients=storage_of(config.memory) == "streamed_master")

    def apply(self, model: LanguageModel) -> None:
        """Round every parameter to nearest. Raises ConfigError for a torch that cannot do it."""
        store_in_bf16(model)
        if self.fp32_gradients:
            keep_fp32_gradients(model)


def store_in_bf16(model: nn.Module) -> None:
    """Make every parameter bf16, rounded to nearest; the parameters stay the same objects."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def keep_fp32_gradients(model: nn.Module) -> None:
    """Let gradients of bf16 parameters be accumulated in fp32. Raises ConfigError before torch 2.10."""
    for parameter in model.parameters():
        if not hasattr(parameter, "grad_dtype"):
            raise ConfigError(
                f"torch {torch.__version__} keeps no fp32 gradients of bf16 weights",
                "install torch 2.10 or later, or set memory.weights = 'fp32'",
            )
        parameter.grad_dtype = torch.float32
