"""What each optimizer is, without torch: its keys with their defaults, and the state it keeps for every parameter.

The shapes of the state serve two sides: the planner counts their bytes, and a checkpoint's tensors are checked against
them before they are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from gpuworkbench import registry

if TYPE_CHECKING:
    from gpuworkbench.config.schema import OptimizerConfig

Role = Literal["hidden", "table", "vector"]
Shape = tuple[int, ...]
Value = float | int | bool | str
STATE_ELEMENT_BYTES = 4  # state is fp32 beside fp32 weights, whatever the precision of the products
MOMENT_BLOCK = 256  # quantised elements that share a scale


class ParameterShape(NamedTuple):
    """`copies` parameters of one shape. hidden: a matrix between hidden states; table: an embedding, positions or a
    head; vector: biases and norms, whatever has fewer than two dimensions.
    """

    role: Role
    shape: Shape
    copies: int


class OptimizerSpec(NamedTuple):
    """One optimizer: `keys` of [optimizer] beside name, lr and weight_decay, and which state it keeps by role."""

    title: str
    keys: Mapping[str, Value]
    state: Callable[[OptimizerConfig, Role], str]  # a name in STATES
    lr_range: tuple[float, float]  # where a search for its rate begins and ends


def adam_state(shape: Shape) -> dict[str, Shape]:
    """Both moments and the step count."""
    return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}


def first_moment_state(shape: Shape) -> dict[str, Shape]:
    """Lion's moving average."""
    return {"exp_avg": shape}


def momentum_state(shape: Shape) -> dict[str, Shape]:
    """The momentum buffer of SGD and Muon."""
    return {"momentum_buffer": shape}


def factored_state(shape: Shape) -> dict[str, Shape]:
    """Adafactor's second moment: a row and a column factor of a matrix (Shazeer and Stern 2018, algorithm 4)."""
    if len(shape) < 2:
        return {"step": (), "variance": shape}
    return {"step": (), "row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}


def packed_adam_state(shape: Shape) -> dict[str, Shape]:
    """Both moments in a byte each with a scale for every 256 elements, the weights' residuals, and the step count."""
    blocks = (-(-math.prod(shape) // MOMENT_BLOCK),)
    return {
        "step": (),
        "residual": shape,
        "exp_avg": shape,
        "exp_avg_scale": blocks,
        "exp_avg_sq": shape,
        "exp_avg_sq_scale": blocks,
    }


def master_adam_state(shape: Shape) -> dict[str, Shape]:
    """Both moments, the fp32 value of a bf16 weight, and the step count."""
    return {**adam_state(shape), "master": shape}


def no_state(_shape: Shape) -> dict[str, Shape]:
    """Gradient descent without momentum."""
    return {}


STATES: Mapping[str, Callable[[Shape], dict[str, Shape]]] = MappingProxyType(
    {
        "adam": adam_state,
        "lion": first_moment_state,
        "momentum": momentum_state,
        "factored": factored_state,
        "packed_adam": packed_adam_state,
        "master_adam": master_adam_state,
        "none": no_state,
    }
)
# Types of state, in torch's spelling, that is not of its parameter's own. Step counts are any floating point scalar.
STATE_DTYPES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "packed_adam": MappingProxyType(
            {
                "residual": "int8",
                "exp_avg": "int8",
                "exp_avg_scale": "float32",
                "exp_avg_sq": "uint8",
                "exp_avg_sq_scale": "float32",
            }
        ),
        "master_adam": MappingProxyType({"exp_avg": "float32", "exp_avg_sq": "float32", "master": "float32"}),
    }
)

ADAMW = OptimizerSpec(
    "AdamW (Loshchilov and Hutter 2019)",
    MappingProxyType({"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}),
    lambda _config, _role: "adam",
    (1e-5, 0.3),
)
MUON = OptimizerSpec(
    "Muon (Jordan et al. 2024) for hidden matrices, AdamW for the rest",
    MappingProxyType(
        {
            "momentum": 0.95,
            "nesterov": True,
            "ns_steps": 5,
            "lr_adjust": "match_rms_adamw",
            "adamw_lr_ratio": 1.0,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
        }
    ),
    lambda _config, role: "momentum" if role == "hidden" else "adam",
    (1e-5, 1.0),
)
LION = OptimizerSpec(
    "Lion (Chen et al. 2023)",
    MappingProxyType({"beta1": 0.9, "beta2": 0.99}),
    lambda _config, _role: "lion",
    (1e-6, 0.1),
)
ADAFACTOR = OptimizerSpec(
    "Adafactor (Shazeer and Stern 2018)",
    MappingProxyType({"beta2_decay": -0.8, "clip_threshold": 1.0, "relative_step": False}),
    lambda _config, _role: "factored",
    (1e-5, 1.0),
)
SGD = OptimizerSpec(
    "SGD with momentum",
    MappingProxyType({"momentum": 0.9, "nesterov": False}),
    lambda config, _role: "momentum" if setting(config, "momentum") else "none",
    (1e-4, 30.0),
)


def spec_of(name: str) -> OptimizerSpec:
    """The spec of optimizer.name. Raises ConfigError for an unknown one."""
    spec: OptimizerSpec = registry.load(registry.lookup(registry.OPTIMIZERS, name, "optimizer.name").spec)
    return spec


def setting(config: OptimizerConfig, key: str) -> Value:
    """The value of one of the optimizer's own keys: as configured, else its default. KeyError where it has no such."""
    value: Value | None = getattr(config, key)
    return spec_of(config.name).keys[key] if value is None else value


def optimizer_state_bytes(config: OptimizerConfig, shapes: Iterable[ParameterShape]) -> int:
    """Bytes of state for these parameters, the step counts (4 bytes a parameter tensor) left out."""
    spec = spec_of(config.name)
    elements = 0
    for role, shape, copies in shapes:
        state = STATES[spec.state(config, role)](shape)
        elements += copies * sum(math.prod(each) for each in state.values() if each)
    return elements * STATE_ELEMENT_BYTES
