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

from gpuworkbench.models.base import LanguageModel
from gpuworkbench.models.head import IGNORE_INDEX, padding_bias


class ChunkedCrossEntropy:
    """The strategy behind memory.chunked_cross_entropy; callable as a model's `cross_entropy`."""

    def __init__(self, chunk_rows: int) -> None:
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows = {chunk_rows}: a chunk has at least one row")
        self.chunk_rows = chunk_rows

    def apply(self, model: LanguageModel) -> None:
        """Let `model` compute its loss this way."""
        model.cross_entropy = self

    def __call__(self, hidden: Tensor, head_weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        """(N, C), (V_padded, C), (N,) -> mean loss in nats, fp32 at least; autocast decides the products' type."""
        options = _Options(vocab_size, self.chunk_rows, _compute_dtype(hidden))
        return _LinearCrossEntropy.apply(hidden, head_weight, targets, options)  # type: ignore[no-untyped-call]


class _Options(NamedTuple):
    vocab_size: int
    chunk_rows: int
    dtype: torch.dtype  # of the matrix products


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """sum over rows of -log softmax(hidden W^T)[target], divided by the number of scored rows."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            x, w = hidden.to(options.dtype), weight.to(options.dtype)
            bias = padding_bias(w, options.vocab_size)
            grad_x = torch.empty_like(x) if needs_hidden else None
            grad_w = torch.zeros_like(weight) if needs_weight else None
            total = torch.zeros((), dtype=_at_least_fp32(options.dtype), device=hidden.device)
            for start in range(0, x.shape[0], options.chunk_rows):
                rows = slice(start, start + options.chunk_rows)
                logits = F.linear(x[rows], w, bias)
                total, logits = _sum_loss(logits, targets[rows], total, needs_hidden or needs_weight)
                if grad_x is not None:
                    torch.mm(logits.to(options.dtype), w, out=grad_x[rows])
                if grad_w is not None:
                    _add_product(grad_w, logits.to(options.dtype).t(), x[rows])
            count = (targets != IGNORE_INDEX).sum()
        ctx.save_for_backward(grad_x, grad_w, count)
        ctx.hidden_dtype = hidden.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_w, count = ctx.saved_tensors
        scale = grad_output / count
        if grad_x is not None:
            grad_x = (grad_x.to(scale.dtype) * scale).to(ctx.hidden_dtype)
        return grad_x, None if grad_w is None else grad_w * scale, None, None


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _sum_loss(logits: Tensor, targets: Tensor, total: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """Add the rows' summed loss to `total`; turn `logits` (R, V_padded) into their gradient, softmax - onehot."""
    logits = logits.to(total.dtype)
    scored = targets != IGNORE_INDEX
    index = torch.where(scored, targets, 0).unsqueeze(-1)
    log_z = logits.logsumexp(dim=-1, keepdim=True)
    total = total + torch.where(scored.unsqueeze(-1), log_z - logits.gather(-1, index), 0.0).sum()
    if needs_grad:
        logits = logits.sub_(log_z).exp_()
        logits.scatter_add_(-1, index, logits.new_full((1, 1), -1.0).expand_as(index))
        logits.mul_(scored.unsqueeze(-1))
    return total, logits


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where `total` may have more precision than the product."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
