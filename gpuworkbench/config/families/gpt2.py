"""The GPT-2 family (Radford et al. 2019): config keys, parameter and FLOP formulas. Torch-free."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from gpuworkbench.config.fields import doc
from gpuworkbench.config.optimizers import ParameterShape

VOCAB_MULTIPLE = 64


class Gpt2Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="family", tag="gpt2"):
    """Pre-norm decoder with learned positions, causal attention, a 4x GELU MLP and a head tied to the embedding."""

    n_layer: Annotated[int, doc("number of transformer blocks", ge=1, le=1024)] = 12
    n_head: Annotated[int, doc("attention heads per block; must divide n_embd", ge=1, le=1024)] = 12
    n_embd: Annotated[int, doc("width of the residual stream (channels)", ge=1, le=65_536)] = 768
    seq_len: Annotated[int, doc("positions the model has: the longest context, in tokens", ge=1, le=1_048_576)] = 1024
    vocab_size: Annotated[
        int,
        doc("tokens in the vocabulary; 0 takes the tokenizer's (padded to a multiple of 64 inside)", ge=0, le=2**24),
    ] = 0
    dropout: Annotated[float, doc("dropout on embeddings, attention and residuals while training", ge=0.0, lt=1.0)] = (
        0.0
    )

    @property
    def family(self) -> str:
        """The registry name of this family."""
        return "gpt2"

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to a multiple of 64, so that GEMMs stay aligned."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def problems(self) -> list[tuple[str, str, str]]:
        """What is wrong with the combination of keys, as (key, what is wrong, what to do)."""
        if self.n_embd % self.n_head:
            return [
                (
                    "model.n_head",
                    f"{self.n_head} heads do not divide n_embd = {self.n_embd}",
                    "choose n_embd as a multiple of n_head",
                )
            ]
        return []

    def n_params(self) -> int:
        """Exact number of parameters with the unpadded vocabulary; the tied head counts once.

        124,439,808 for 12 x 768 with 50,257 tokens and 1,024 positions, as published.
        """
        c = self.n_embd
        block = 12 * c * c + 13 * c  # qkv, proj, fc, out with biases, and two LayerNorms
        return self.vocab_size * c + self.seq_len * c + self.n_layer * block + 2 * c

    def parameter_shapes(self) -> list[ParameterShape]:
        """Every parameter in memory, as (role, shape, how many of them); the tied head is the token table."""
        c, layers = self.n_embd, self.n_layer
        return [
            ParameterShape("table", (self.padded_vocab_size, c), 1),
            ParameterShape("table", (self.seq_len, c), 1),
            ParameterShape("hidden", (3 * c, c), layers),
            ParameterShape("hidden", (c, c), layers),
            ParameterShape("hidden", (4 * c, c), layers),
            ParameterShape("hidden", (c, 4 * c), layers),
            ParameterShape("vector", (c,), 6 * layers + 2),  # two norms of two, two output biases, the final norm
            ParameterShape("vector", (3 * c,), layers),
            ParameterShape("vector", (4 * c,), layers),
        ]

    def n_allocated_params(self) -> int:
        """Parameters in memory: as `n_params`, with the vocabulary padded to a multiple of 64."""
        return self.n_params() + (self.padded_vocab_size - self.vocab_size) * self.n_embd

    def saved_bytes_per_token(self, compute_bytes: int, checkpointing: str = "none", every: int = 2) -> int:
        """Bytes kept for backward per token when the forward pass is done; products have `compute_bytes` an element.

        Per block and channel: two inputs of norms (fp32, the residual stream) and 14 inputs of products or GELU
        (after each norm 1, qkv 3, attention's output 1, fc 4, GELU 4): 36 bytes in bf16, 64 in fp32. Dropout keeps a
        mask of one byte after each of two projections. The final norm keeps its input, the head its own.

        `checkpointing` (memory.activation_checkpointing): a block that is recomputed keeps its input (fp32). Selective
        keeps that and what products and attention gave: qkv 3, attention 1, its projection 1, fc 4. With dropout,
        attention is recomputed too. `every`: every_n recomputes one block in this many, the first among them.
        """
        masks = 2 if self.dropout else 0
        whole = 8 + 14 * compute_bytes + masks
        attention = 0 if self.dropout else 1
        recomputed = 4 + (8 + attention) * compute_bytes if checkpointing == "selective" else 4
        n_recomputed = self.n_recomputed_blocks(checkpointing, every)
        blocks = n_recomputed * recomputed + (self.n_layer - n_recomputed) * whole
        return blocks * self.n_embd + self.n_embd * (4 + compute_bytes)

    def recomputed_bytes_per_token(self, compute_bytes: int, checkpointing: str) -> int:
        """Bytes per token that come back on top while backward is in a recomputed block; one block at a time."""
        if checkpointing == "none":
            return 0
        kept = self.saved_bytes_per_token(compute_bytes, checkpointing, 1)
        return (self.saved_bytes_per_token(compute_bytes) - kept) // self.n_layer

    def n_recomputed_blocks(self, checkpointing: str, every: int = 2) -> int:
        """Blocks whose activations are computed again in backward."""
        if checkpointing == "none":
            return 0
        return -(-self.n_layer // every) if checkpointing == "every_n" else self.n_layer

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs per token: 6 N for the matrices, 12 L C T for attention (PaLM, appendix B).

        N leaves out the position table (a lookup) and counts the token table once (it is the head's matrix).
        """
        n_matmul = self.n_allocated_params() - self.seq_len * self.n_embd
        return 6 * n_matmul + 12 * self.n_layer * self.n_embd * seq_len
