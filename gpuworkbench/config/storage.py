"""Bytes of weights, gradients and optimizer state for each way that [memory] can have them stored. Torch-free.

Per parameter, AdamW; P is the number of parameters (padded vocabulary, tied head once):

| storage                   | weights | gradients | state on the device       | residual | on the host         |
|---------------------------|---------|-----------|---------------------------|----------|---------------------|
| fp32                      | 4       | 4         | 8                         |          |                     |
| bf16 (stochastic or not)  | 2       | 2         | 4                         |          |                     |
| packed                    | 2       | 2         | 2 + 8 / 256 (block scales)| 1        |                     |
| streamed, fp32 weights    | 4       | 4         | two buckets               |          | 8 (m, v)            |
| streamed, bf16 weights    | 2       | 4         | two buckets               |          | 12 (master, m, v)   |
| predict-aware             | as without                                      |          | the state once more |

`memory.optimizer_in_backward` leaves of the gradients the largest table's, which both its uses add up to through the
whole backward pass, and one more of the largest parameter. The optimizers of training/optimizers/ take their types,
block and bucket sizes from here, so the planner's bytes and theirs cannot disagree.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.optimizers import MOMENT_BLOCK, STATES, ParameterShape, Role, spec_of
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.units import MIB

Storage = Literal["fp32", "bf16", "stochastic", "packed", "streamed", "streamed_master"]
FP32_BYTES = 4
BF16_BYTES = 2
CODE_BYTES = 1  # a moment or a residual, quantised
SCALE_BYTES = 4  # fp32
# Packed and stochastic updates are computed on so many elements at a time: the only fp32 copies there are.
UPDATE_ELEMENTS = 1 << 20
# Peak of those temporaries, bytes per element (measured: tests/training/test_packed_adamw.py).
UPDATE_SCRATCH_BYTES = 32
ARENA_ALIGNMENT = 64  # elements
STAGING_SLOTS = 2  # one is computed on while the other is filled or emptied


class StorageBytes(NamedTuple):
    """Bytes by part. All but `host_state` are where the run computes; that one is host memory, pinned for a card.

    `staging`: buckets on their way, or scratch of an update in small formats.
    """

    weights: int
    gradients: int
    optimizer_state: int
    residual: int
    staging: int
    host_state: int

    @property
    def device_bytes(self) -> int:
        """Everything where the run computes."""
        return self.weights + self.gradients + self.optimizer_state + self.residual + self.staging


def storage_of(memory: MemoryConfig) -> Storage:
    """How weights and optimizer state are stored (combinations that make no sense are refused elsewhere)."""
    if memory.optimizer_offload == "streamed":
        return "streamed_master" if memory.weights == "bf16" else "streamed"
    if memory.packed_optimizer:
        return "packed"
    if memory.stochastic_rounding:
        return "stochastic"
    return memory.weights


def checkpoint_format(config: RunConfig) -> tuple[str, ...]:
    """Which tensors, and of which types, a checkpoint has for weights and optimizer.

    Where two configurations of a model agree in it, the one can train on from the other's checkpoints. Where state lies
    while the run computes, and how updates are rounded, make no difference to it.
    """
    storage = storage_of(config.memory)
    alike: dict[Storage, Storage] = {"streamed": "fp32", "stochastic": "bf16"}
    state = spec_of(config.optimizer.name).state
    return alike.get(storage, storage), *(state(config.optimizer, role) for role in get_args(Role))


def storage_bytes(config: RunConfig) -> StorageBytes:
    """What the run's parameters take, by the table above; the model's vocabulary must be known.

    Step counts (4 bytes a tensor, on the host for most) are left out.
    """
    storage, shapes = storage_of(config.memory), config.model.parameter_shapes()
    n_params = sum(copies * math.prod(shape) for _, shape, copies in shapes)
    weight_width = BF16_BYTES if config.memory.weights == "bf16" else FP32_BYTES
    gradient_width = FP32_BYTES if storage == "streamed_master" else weight_width
    n_gradients = n_params
    if config.memory.optimizer_in_backward and config.device.compile == "off":  # compiled, all come at once
        n_gradients = min(n_params, gradients_in_backward(shapes))
    state, residual, staging, host = 0, 0, 0, 0
    if storage == "packed":
        n_blocks = sum(copies * -(-math.prod(shape) // MOMENT_BLOCK) for _, shape, copies in shapes)
        state = 2 * (n_params * CODE_BYTES + n_blocks * SCALE_BYTES)
        residual = n_params * CODE_BYTES
        staging = update_scratch_bytes(shapes)
    elif storage in ("streamed", "streamed_master"):
        host, staging = streamed_bytes(config.memory, shapes)
    else:
        state = state_elements(config, shapes) * weight_width
        staging = update_scratch_bytes(shapes) if storage == "stochastic" else 0
        host = state if config.memory.optimizer_offload == "predict_aware" else 0
    if storage == "packed" and config.memory.optimizer_offload == "predict_aware":
        host = state + residual
    return StorageBytes(n_params * weight_width, n_gradients * gradient_width, state, residual, staging, host)


def state_elements(config: RunConfig, shapes: list[ParameterShape]) -> int:
    """Elements of the optimizer's own state, the step counts left out."""
    spec = spec_of(config.optimizer.name)
    elements = 0
    for role, shape, copies in shapes:
        state = STATES[spec.state(config.optimizer, role)](shape)
        elements += copies * sum(math.prod(each) for each in state.values() if each)
    return elements


def gradients_in_backward(shapes: list[ParameterShape]) -> int:
    """Most elements of gradients at once where each is used up as soon as it is there."""
    tables = [math.prod(shape) for role, shape, _ in shapes if role == "table"]
    return max(tables, default=0) + max(math.prod(shape) for _, shape, _ in shapes)


def update_scratch_bytes(shapes: list[ParameterShape]) -> int:
    """fp32 temporaries of an update that goes through a parameter in pieces."""
    return min(UPDATE_ELEMENTS, max(math.prod(shape) for _, shape, _ in shapes)) * UPDATE_SCRATCH_BYTES


def streamed_bytes(memory: MemoryConfig, shapes: list[ParameterShape]) -> tuple[int, int]:
    """Of streamed state: the arena on the host, and the staging slots on the device with the update's temporaries."""
    row = streamed_row_bytes(memory)
    arena = sum(copies * aligned(math.prod(shape)) for _, shape, copies in shapes)
    bucket = min(bucket_elements(memory), arena)
    slots = min(STAGING_SLOTS, -(-arena // bucket))
    scratch = min(UPDATE_ELEMENTS, max(math.prod(shape) for _, shape, _ in shapes)) * 2 * FP32_BYTES
    return arena * row, slots * bucket * row + scratch


def aligned(num_elements: int) -> int:
    """Elements that a parameter takes in an arena: every one begins at a multiple of 64, 256 bytes."""
    return -(-num_elements // ARENA_ALIGNMENT) * ARENA_ALIGNMENT


def streamed_row_bytes(memory: MemoryConfig) -> int:
    """Bytes of a parameter's state on the host: m and v, and the master where the weights are bf16; all fp32."""
    return FP32_BYTES * (3 if memory.weights == "bf16" else 2)


def bucket_elements(memory: MemoryConfig) -> int:
    """Parameters whose state is one bucket: whole multiples of 4096, so that no vector instruction is cut in two."""
    granule = 4096
    return max(memory.offload_bucket_mib * MIB // streamed_row_bytes(memory) // granule, 1) * granule
