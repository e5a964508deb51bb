"""Head and cross-entropy in chunks of rows, so that the logits never exist as a whole.

The gradients of the hidden states and of the table are computed chunk by chunk in the forward pass, while the
chunk's logits are there (the idea of Liger's fused linear cross-entropy, arXiv 2410.10989), and scaled in backward.
Memory: one chunk of logits plus both gradients, in place of three copies of all logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.memory.strategy import Strategy
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.models.head import IGNORE_INDEX, padding_bias
from gpuworkbench.models.linear import linear, matmul


class ChunkedCrossEntropy(Strategy):
    """The strategy behind memory.chunked_cross_entropy; callable as a model's `cross_entropy`."""

    name = "chunked_cross_entropy"

    def __init__(self, chunk_rows: int) -> None:
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows = {chunk_rows}: a chunk has at least one row")
        self.chunk_rows = chunk_rows

    @classmethod
    def from_config(cls, config: RunConfig) -> ChunkedCrossEntropy | None:
        """As memory.cross_entropy_chunk_rows says, where memory.chunked_cross_entropy is on."""
        memory = config.memory
        return cls(memory.cross_entropy_chunk_rows) if memory.chunked_cross_entropy else None

    def apply(self, model: LanguageModel) -> None:
        """Let `model` compute its loss this way."""
        model.cross_entropy = self

    def __call__(self, hidden: Tensor, head_weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        """(N, C), (V_padded, C), (N,) -> mean loss in nats, fp32 at least; autocast decides the products' type."""
        options = _Options(vocab_size, self.chunk_rows, _compute_dtype(hidden), torch.is_grad_enabled())
        return _LinearCrossEntropy.apply(hidden, head_weight, targets, options)


class _Options(NamedTuple):
    vocab_size: int
    chunk_rows: int
    dtype: torch.dtype  # of the matrix products
    grad_enabled: bool  # not to be seen inside of forward


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean of -log softmax(hidden W^T)[target] over the scored rows."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options) -> Tensor:
        needs_hidden, needs_weight = (options.grad_enabled and needed for needed in ctx.needs_input_grad[:2])
        with torch.autocast(hidden.device.type, enabled=False):
            x, w = hidden.to(options.dtype), weight.to(options.dtype)
            bias = padding_bias(w, options.vocab_size)
            scored = (targets != IGNORE_INDEX).unsqueeze(-1)
            index = torch.where(scored, targets.unsqueeze(-1), 0)
            losses, grads_x, grad_w = [], [], None
            for start in range(0, x.shape[0], options.chunk_rows):
                rows = slice(start, start + options.chunk_rows)
                logits = linear(x[rows], w, bias)
                log_p = F.log_softmax(logits, dim=-1, dtype=_at_least_fp32(options.dtype))
                losses.append(-log_p.gather(-1, index[rows]))
                if not (needs_hidden or needs_weight):
                    del logits, log_p
                    continue
                grad = _logits_grad(log_p, index[rows], logits)
                if needs_hidden:
                    grads_x.append(matmul(grad, w))
                if needs_weight:
                    # rows that are not scored drop out here, in R x C numbers, not in a pass over R x V
                    grad_w = _add_product(grad_w, grad.t(), x[rows] * scored[rows], weight.dtype)
                del logits, log_p, grad  # or they are still there when the next chunk's come
            count = scored.sum().clamp_(min=1)  # nothing scored: loss and gradients are 0
            ctx.grad_x = (torch.cat(grads_x) * scored).to(hidden.dtype) if needs_hidden else None
            ctx.grad_w = grad_w
            ctx.save_for_backward(count)
            return torch.where(scored, torch.cat(losses), 0.0).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scales in place what forward left: a copy of the table's gradient would come at the peak of memory use."""
        (count,) = ctx.saved_tensors
        grad_x, grad_w, ctx.grad_x, ctx.grad_w = ctx.grad_x, ctx.grad_w, None, None
        if grad_x is None and grad_w is None:
            raise RuntimeError("backward through a chunked cross-entropy runs once; compute the loss again")
        scale = grad_output / count
        grad_x = None if grad_x is None else grad_x.mul_(scale)
        grad_w = None if grad_w is None else grad_w.mul_(scale)
        return grad_x, grad_w, None, None


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _logits_grad(log_p: Tensor, index: Tensor, logits: Tensor) -> Tensor:
    """softmax - onehot (R, V_padded), in the type of `logits`; both arguments' memory is used up."""
    grad = log_p.exp_()
    grad.scatter_add_(-1, index, grad.new_full((1, 1), -1.0).expand_as(index))
    return grad if grad.dtype == logits.dtype else logits.copy_(grad)


def _add_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """total + a @ b, in place where there is a total; `dtype` is its type and may be wider than the product's."""
    if total is None:
        return matmul(a, b).to(dtype)
    if dtype == a.dtype:
        return total.addmm_(a, b)
    return total.add_(a @ b)
