"""Bytes that backward needs of a micro-batch's forward pass, and those that flow through one block in backward.

The family's `saved_bytes_per_token` counts what all blocks keep without recompute; checkpointing keeps the inputs of
recomputed blocks instead, and one block as a whole while it is computed again.
"""

from __future__ import annotations

from typing import NamedTuple

from gpuworkbench.config.schema import RunConfig

# torch.compile recomputes pointwise results: about 20 of 36 bytes per element are still kept.
COMPILED_SHARE = 20 / 36


class Activations(NamedTuple):
    """Bytes of one micro-batch. `saved`: kept on the device from forward to backward; `host`: kept in host memory
    meanwhile; `block`: what one block has there while it is computed again or comes back."""

    saved: int
    host: int
    block: int


def activations(config: RunConfig, n_rows: int, width: int, kind: str = "cuda") -> Activations:
    """What `n_rows` tokens keep, with matrix products of `width` bytes an element."""
    model, memory = config.model, config.memory
    mode, every = memory.activation_checkpointing, memory.activation_checkpointing_every
    share = 1.0 if config.device.compile == "off" else COMPILED_SHARE
    ends = model.n_embd * (4 + width)  # the final norm's input and the head's
    saved = (model.saved_bytes_per_token(width, mode, every) - ends) * share
    again = model.recomputed_bytes_per_token(width, mode) * share
    if memory.weights == "bf16":
        saved -= model.n_embd * _narrower_stream_bytes(config, kind) * share
        ends -= 2 * model.n_embd if kind == "cpu" else 0
    host = 0.0
    if memory.activation_offload:
        host, saved = saved, 2 * saved / model.n_layer  # a block on its way out or in, and the one that computes
    return Activations(int(n_rows * (saved + ends)), int(n_rows * host), int(n_rows * again))


def _narrower_stream_bytes(config: RunConfig, kind: str) -> int:
    """Bytes per channel that blocks keep less where the weights, and so the residual stream, are bf16.

    A recomputed block's input is 2 bytes, not 4. A card's autocast computes norms in fp32, and keeps their inputs so; a
    CPU's does not, which is 2 bytes less for each of a block's two norms.
    """
    recomputed = config.model.n_recomputed_blocks(
        config.memory.activation_checkpointing, config.memory.activation_checkpointing_every
    )
    whole = config.model.n_layer - recomputed
    return 2 * recomputed + (4 * whole if kind == "cpu" else 0)
