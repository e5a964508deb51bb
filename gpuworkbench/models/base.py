"""What every decoder language model offers to the trainer, to memory strategies and to generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gpuworkbench.models.head import CrossEntropy, head_logits, plain_cross_entropy
from gpuworkbench.models.kv_cache import KvCache

CallBlock = Callable[[int, nn.Module, Tensor], Tensor]  # (layer, block, x (B, T, C)) -> (B, T, C)


def plain_block_call(layer: int, block: nn.Module, x: Tensor) -> Tensor:
    """The block's own forward pass."""
    y: Tensor = block(x)
    return y


class LanguageModel(nn.Module):
    """Base of the families. A family gives `head_weight`, `blocks`, `hidden` and `init_weights`; the rest is here.

    `cross_entropy` computes head and loss together, `call_block` one block of a pass without a cache; a memory strategy
    may replace either.
    """

    vocab_size: int  # tokens; the table may have more rows
    seq_len: int  # positions: the longest context, in tokens

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.cross_entropy: CrossEntropy = plain_cross_entropy
        self.call_block: CallBlock = plain_block_call

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks that `hidden` calls, in order, each through `call_block`."""
        raise NotImplementedError

    @property
    def head_weight(self) -> Tensor:
        """(V_padded, C): the matrix from hidden states to logits."""
        raise NotImplementedError

    def hidden(self, idx: Tensor, cache: KvCache | None = None) -> Tensor:
        """Token ids (B, T) -> hidden states (B, T, C), ready for the head.

        With a cache, `idx` continues the tokens already seen: any number of them at first, then one at a time.
        Raises ValueError when the context is longer than `seq_len`.
        """
        raise NotImplementedError

    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every parameter with the family's initial values, from `generator` alone."""
        raise NotImplementedError

    def new_cache(self) -> KvCache | None:
        """An empty cache for `hidden`, or None where a family has none."""
        return None

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids (B, T) int64 -> logits (B, T, vocab_size), or the scalar mean loss (nats) over `targets` (B, T).

        Targets of -100 are not scored.
        """
        x = self.hidden(idx)
        if targets is None:
            return head_logits(x, self.head_weight, self.vocab_size)
        return self.cross_entropy(x.flatten(0, 1), self.head_weight, targets.flatten(), self.vocab_size)
