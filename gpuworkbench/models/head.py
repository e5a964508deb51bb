"""The language-model head and its loss: hidden states and the embedding table in, logits or a mean loss out.

The table has more rows than the vocabulary has tokens (padded to a multiple of 64). The extra columns of the logits
are set to -inf as the bias of the matrix product, which costs no pass over the logits, so they have probability 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gpuworkbench.models.linear import linear

IGNORE_INDEX = -100  # a target that is not scored, as in torch

# (hidden (N, C), head_weight (V_padded, C), targets (N,) int64, vocab_size) -> scalar mean loss in nats
CrossEntropy = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def padding_bias(head_weight: Tensor, vocab_size: int, dtype: torch.dtype | None = None) -> Tensor | None:
    """(V_padded,): 0 for the vocabulary, -inf for the padding; None where there is no padding."""
    rows = head_weight.shape[0]
    if rows == vocab_size:
        return None
    bias = torch.zeros(rows, dtype=dtype or head_weight.dtype, device=head_weight.device)
    bias[vocab_size:] = -torch.inf
    return bias


def head_logits(hidden: Tensor, head_weight: Tensor, vocab_size: int) -> Tensor:
    """(..., C) -> logits (..., vocab_size); the padded rows of the table are left out."""
    return linear(hidden, head_weight)[..., :vocab_size]


def plain_cross_entropy(hidden: Tensor, head_weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean cross-entropy over the targets that are not IGNORE_INDEX, with all logits in memory at once.

    Without a single such target it is 0, and so are its gradients.
    """
    logits = linear(hidden, head_weight, padding_bias(head_weight, vocab_size))
    mean = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
    return torch.where((targets != IGNORE_INDEX).any(), mean, 0.0)
