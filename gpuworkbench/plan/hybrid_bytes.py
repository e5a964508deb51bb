"""Bytes of the hybrid trainer: a predictor's state, the copy that undoes a jump, and buckets on their way to the host.

With `hybrid.state_device = "host"` all of it is host memory and passes through the device bucket by bucket at a jump.
"""

from __future__ import annotations

from typing import NamedTuple

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import StorageBytes
from gpuworkbench.units import MIB

STREAM_BUCKETS = 3  # one on its way in, one computed on, one on its way out
# Copies of the weights that a predictor keeps, as the types of the weights say.
STATE_COPIES = {"null": 0, "random": 0, "outer_nesterov": 2, "ema_trend": 2, "line_jump": 1}
DEFAULT_COPIES = 5  # predictors over a window of recent displacements


class HybridBytes(NamedTuple):
    """`device`: where the run computes; `host`: in host memory, pinned for a card."""

    device: int
    host: int


def hybrid_bytes(config: RunConfig, storage: StorageBytes) -> HybridBytes:
    """What prediction adds to the run; nothing where it is off."""
    if not config.hybrid.enabled:
        return HybridBytes(0, 0)
    copies = STATE_COPIES.get(config.hybrid.predictor, DEFAULT_COPIES)
    undo = storage.weights + storage.residual if copies else 0
    state = copies * storage.weights + undo
    if config.hybrid.state_device == "device":
        return HybridBytes(state, 0)
    return HybridBytes(min(STREAM_BUCKETS * config.memory.offload_bucket_mib * MIB, state), state)
