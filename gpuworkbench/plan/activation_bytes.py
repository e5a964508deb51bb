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


def activations(config: RunConfig, n_rows: int, width: int) -> Activations:
    """What `n_rows` tokens keep, with matrix products of `width` bytes an element."""
    model, memory = config.model, config.memory
    share = 1.0 if config.device.compile == "off" else COMPILED_SHARE
    per_token = model.saved_bytes_per_token(width)
    ends = model.n_embd * (4 + width)  # the final norm's input and the head's
    block = (per_token - ends) / model.n_layer * share
    stream = model.n_embd * (2 if memory.weights == "bf16" and width < 4 else 4)
    kept = {
        "none": 0,
        "all": model.n_layer,
        "every_n": -(-model.n_layer // memory.activation_checkpointing_every),
        "selective": 0,
    }[memory.activation_checkpointing]
    per_block = block
    if memory.activation_checkpointing == "selective":
        per_block = min(block, per_token_selective(config, width))
    saved = (model.n_layer - kept) * per_block + kept * stream
    again = block if kept or memory.activation_checkpointing == "selective" else 0
    host = 0.0
    if memory.activation_offload:
        host, saved = saved, 2 * (stream if kept == model.n_layer else per_block)
        again = again or per_block
    return Activations(int(n_rows * (saved + ends)), int(n_rows * host), int(n_rows * again))


def per_token_selective(config: RunConfig, width: int) -> float:
    """A block's bytes per token where pointwise results (norms, GELU) are computed again: 20 of 36 in bf16."""
    return config.model.n_embd * (8 + 6 * width)
