"""Bytes of the hybrid trainer: a predictor's state, the copy that undoes a jump, and what is on its way to the host.

With `hybrid.state_device = "host"` all of it is host memory, and passes through the device one parameter at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gpuworkbench.config.predictors import predictor_state_bytes, undo_bytes
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import StorageBytes

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
    """What prediction and the averaged weights add to the run; nothing where they are off.

    Undo is a copy of weights, residual and optimizer state as they are stored, from a jump until it is judged.
    """
    sizes = [(math.prod(shape), copies) for _, shape, copies in config.model.parameter_shapes()]
    n_params = sum(size * copies for size, copies in sizes)
    average = FP32_BYTES * n_params if config.hybrid.ema_eval_decay else 0
    state = predictor_state_bytes(config.hybrid, n_params) + average
    optimizer = storage.optimizer_state or storage.host_state  # streamed state is copied on the host too
    undo = undo_bytes(config.hybrid, storage.weights + storage.residual, optimizer)
    if config.hybrid.state_device == "device":
        return HybridBytes(state, undo, 0, state)
    passing = 0 if not config.hybrid.enabled else JUMP_COPIES * FP32_BYTES * max(size for size, _ in sizes)
    return HybridBytes(0, passing, state + undo, state)
