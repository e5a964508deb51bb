"""Bytes of the hybrid trainer: a predictor's state, the copy that undoes a jump, and what is on its way to the host.

With `hybrid.state_device = "host"` all of it is host memory, and passes through the device one parameter at a time.
Each tensor there begins at a multiple of 512 bytes; what that adds, and step counts, are left out.
With `hybrid.undo_storage = "disk"` undo is a file: what the system caches of it, it gives up when memory is short.
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
    """`device`: where the run computes, always; `undo`: there on top from a jump until it is judged, through the true
    steps after it; `passing`: there while a jump is made; `host`: in host memory, pinned for a card; `saved`: in a
    checkpoint; `judged`: in one more of a step between a jump and its judgement; `disk`: in a file until then."""

    device: int
    undo: int
    passing: int
    host: int
    saved: int
    judged: int
    disk: int


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
    on_disk = config.hybrid.undo_storage == "disk"
    disk, in_memory = (undo, 0) if on_disk else (0, undo)
    if config.hybrid.state_device == "device":
        return HybridBytes(state, in_memory, 0, 0, state, undo, disk)
    passing = 0 if not config.hybrid.enabled else JUMP_COPIES * FP32_BYTES * max(size for size, _ in sizes)
    return HybridBytes(0, 0, passing, state + in_memory, state, undo, disk)
