"""Bytes of the hybrid trainer: a predictor's state, the copy that undoes a jump, and what is on its way to the host.

With `hybrid.state_device = "host"` all of it is host memory, and passes through the device one parameter at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import StorageBytes

# Bytes of state that a predictor keeps for a parameter: fp32 slow weights and momentum, displacements, ...
STATE_BYTES = {"null": 0, "random": 4, "outer_nesterov": 8, "ema_trend": 8, "line_jump": 4, "subspace": 24}
MOST_STATE_BYTES = 24  # predictors over a window of displacements
FP32_BYTES = 4
JUMP_COPIES = 3  # of the largest parameter, in fp32: its value, its new value, and what comes back from the host


class HybridBytes(NamedTuple):
    """`device`: where the run computes, always; `jump`: there on top while a jump is made and judged; `host`: in host
    memory, pinned for a card; `saved`: in a checkpoint."""

    device: int
    jump: int
    host: int
    saved: int


def hybrid_bytes(config: RunConfig, storage: StorageBytes) -> HybridBytes:
    """What prediction adds to the run; nothing where it is off.

    Undo is a copy of weights, residual and optimizer state as they are stored, from a jump until it is judged.
    """
    if not config.hybrid.enabled:
        return HybridBytes(0, 0, 0, 0)
    sizes = [(math.prod(shape), copies) for _, shape, copies in config.model.parameter_shapes()]
    n_params = sum(size * copies for size, copies in sizes)
    state = STATE_BYTES.get(config.hybrid.predictor, MOST_STATE_BYTES) * n_params
    undo = storage.weights + storage.residual + storage.optimizer_state
    if config.hybrid.state_device == "device":
        return HybridBytes(state, undo, 0, state)
    passing = JUMP_COPIES * FP32_BYTES * max(size for size, _ in sizes)
    return HybridBytes(0, passing, state + undo, state)
