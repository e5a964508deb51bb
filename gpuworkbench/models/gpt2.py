"""GPT-2 (Radford et al. 2019): pre-norm decoder, causal attention, learned positions, head tied to the embedding.

Parameters carry the names of the published checkpoints (`wte`, `wpe`, `h.0.attn.c_attn`, ...), except that matrices
are stored as nn.Linear stores them, (out, in), where the published ones are (in, out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.models.kv_cache import KvCache, LayerCache
from gpuworkbench.models.linear import Linear

INIT_STD = 0.02


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position t sees positions 0..t."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). With a cache, x follows the positions that it holds and is added to it."""
        b, t, c = x.shape
        qkv = self.c_attn(x).view(b, t, 3, self.n_head, c // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, C / heads)
        causal = True
        if cache is not None:
            causal = cache.length == 0  # later calls bring one position, which sees all that came before
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(b, t, c)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class Mlp(nn.Module):
    """Two matrices, four times as wide in between, with the tanh form of GELU."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        y = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(y, self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream after."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class Gpt2(LanguageModel):
    """A GPT-2 of any size. Built without values on torch.device("meta") too; `init_weights` fills it."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__(config.vocab_size, config.seq_len)
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.seq_len, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every parameter: matrices and tables N(0, 0.02), biases 0, norms 1.

        The two projections of a block that write to the residual stream are scaled by 1 / sqrt(2 n_layer) (GPT-2
        paper, section 2.3). The position table gets 0.02 as in transformers and nanoGPT; OpenAI's own code has 0.01.
        The padding rows of the token table start at 0, and their gradient is 0.
        """
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                std = residual_std if name.endswith("c_proj.weight") else INIT_STD
                parameter.normal_(0.0, std, generator=generator)
        self.wte.weight[self.vocab_size :] = 0.0

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return list(self.h)

    @property
    def head_weight(self) -> Tensor:
        """(V_padded, C): the token table, which is the head's matrix too."""
        return self.wte.weight

    def new_cache(self) -> KvCache:
        """An empty cache of keys and values for `hidden`, as long as the model's context."""
        return KvCache(self.config.n_layer, self.seq_len)

    def hidden(self, idx: Tensor, cache: KvCache | None = None) -> Tensor:
        """Token ids (B, T) -> hidden states (B, T, C) after the final norm."""
        start = 0 if cache is None else cache.length
        end = start + idx.shape[1]
        if end > self.seq_len:
            raise ValueError(f"{end} tokens are more than the {self.seq_len} positions of the model")
        x = self.wte(idx) + self.wpe.weight[start:end]
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = self.call_block(layer, block, x) if cache is None else block(x, cache.layers[layer])
        return self.ln_f(x)
