"""Activation checkpointing: what backward needs of a block is computed again instead of kept (arXiv 1604.06174).

`all` and `every_n` keep the input of a block and recompute the rest of it, about a third more FLOPs for each block.
`selective` (arXiv 2205.05198, here by operator) keeps what products and attention gave and recomputes norms, GELU and
sums, which are cheap. The bytes are in the families' `saved_bytes_per_token`. Gradients are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.memory.strategy import Strategy
from gpuworkbench.models.base import CallBlock, LanguageModel, plain_block_call

_PRODUCTS = {"aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"}
_ATTENTION = "aten::_scaled_dot_product_"  # one operator for each kernel: flash, efficient, cuDNN, flash for the CPU


class ActivationCheckpointing(Strategy):
    """The strategy behind memory.activation_checkpointing; callable as a model's `call_block`."""

    name = "activation_checkpointing"

    def __init__(self, mode: str, every: int = 2, *, has_dropout: bool = True) -> None:
        if mode not in ("all", "every_n", "selective"):
            raise ValueError(f"activation checkpointing {mode!r} is none of all, every_n, selective")
        self.every = every if mode == "every_n" else 1
        self.has_dropout = has_dropout
        self.inner: CallBlock = plain_block_call
        self.options: dict[str, Any] = {}
        if mode == "selective":
            self.options["context_fn"] = partial(create_selective_checkpoint_contexts, keep_what_is_dear)

    @classmethod
    def from_config(cls, config: RunConfig) -> ActivationCheckpointing | None:
        """As memory.activation_checkpointing says."""
        memory = config.memory
        if memory.activation_checkpointing == "none":
            return None
        every = memory.activation_checkpointing_every
        return cls(memory.activation_checkpointing, every, has_dropout=config.model.dropout > 0)

    def apply(self, model: LanguageModel) -> None:
        """Let `model` run its blocks this way; the first of every `every` blocks is recomputed."""
        self.inner, model.call_block = model.call_block, self

    def __call__(self, layer: int, block: nn.Module, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C). Nothing is recomputed where nothing is kept: validation, probes, samples."""
        if layer % self.every or not torch.is_grad_enabled():
            return self.inner(layer, block, x)
        y: Tensor = checkpoint(
            self.inner,
            layer,
            block,
            x,
            use_reentrant=False,
            preserve_rng_state=self.has_dropout,  # the generators' states are worth reading only then
            **self.options,
        )
        return y


def keep_what_is_dear(context: Any, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What selective checkpointing does with the result of one operator.

    A product that makes its input narrower is the block's last (4C -> C): nothing that is recomputed needs it.
    Attention with dropout is recomputed, so that the generator goes through the same draws again.
    """
    schema = operator._schema  # type: ignore[attr-defined]
    name = schema.name
    if name in _PRODUCTS:
        result_is_narrower = _width_out(name, args) < _width_in(name, args)
        return CheckpointPolicy.PREFER_RECOMPUTE if result_is_narrower else CheckpointPolicy.MUST_SAVE
    if name.startswith(_ATTENTION):
        arguments = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
        if not {**arguments, **kwargs}.get("dropout_p", 0.0):
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _width_in(name: str, args: tuple[Any, ...]) -> int:
    left: Tensor = args[1] if name == "aten::addmm" else args[0]
    return left.shape[-1]


def _width_out(name: str, args: tuple[Any, ...]) -> int:
    if name == "mkldnn::_linear_pointwise":
        return int(args[1].shape[0])
    right: Tensor = args[2] if name == "aten::addmm" else args[1]
    return right.shape[-1]
