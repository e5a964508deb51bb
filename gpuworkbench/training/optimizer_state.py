"""An optimizer's state as flat tensors by parameter name, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpuworkbench.config.optimizers import STATE_DTYPES, STATES
from gpuworkbench.errors import CheckpointError

_FOREIGN = "the checkpoint is from another model or optimizer"
_SEPARATOR = "/"  # module names cannot hold it: "exp_avg/h.0.ln_1.weight"


def optimizer_state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "state key/parameter name" -> tensor, without copies; empty before the first step.

    Learning rate, betas and the like are not in it: they are configuration. Raises TypeError for state that is not a
    tensor.
    """
    _settle(optimizer)
    flat: dict[str, Tensor] = {}
    for name, parameter in _trainable(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"optimizer state {key!r} of {name} is {type(value).__name__}, not a tensor")
            flat[f"{key}{_SEPARATOR}{name}"] = value
    return flat


def load_optimizer_state_by_name(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put saved state back, one tensor at a time, so that no second copy of it is ever in memory.

    `tensors` may be lazy: each value is read once. Existing state is overwritten in place, missing state is created.
    Raises CheckpointError when names, shapes or types are not what this optimizer keeps; then it must not be used.
    """
    _settle(optimizer)
    parameters = dict(_trainable(model))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    keys_of = _state_keys_by_name(tensors)
    if not keys_of:  # saved before the first step
        optimizer.state.clear()
        return
    if hasattr(optimizer, "make_state"):  # where its tensors have a place of their own
        optimizer.make_state()
    expected = {name: _shapes(parameter, groups[id(parameter)]) for name, parameter in parameters.items()}
    _check_names(expected, keys_of)
    for name, shapes in expected.items():
        parameter = parameters[name]
        for key, shape in shapes.items():
            saved = tensors[f"{key}{_SEPARATOR}{name}"]
            _check_tensor(key, name, saved, shape, _dtype(key, parameter, groups[id(parameter)]))
            _put(optimizer.state[parameter], key, saved, parameter, groups[id(parameter)])


def _settle(optimizer: torch.optim.Optimizer) -> None:
    """State that travels has to arrive before it is read or written."""
    if hasattr(optimizer, "settle"):
        optimizer.settle()


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _shapes(parameter: nn.Parameter, group: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """State key -> shape of what the parameter's group keeps for it; a group that says nothing is torch's AdamW."""
    return STATES[group.get("state", "adam")](tuple(parameter.shape))


def _dtype(key: str, parameter: nn.Parameter, group: Mapping[str, Any]) -> torch.dtype:
    """The type of a state tensor: the parameter's, where its kind of state does not say otherwise."""
    name = STATE_DTYPES.get(group.get("state", "adam"), {}).get(key)
    return parameter.dtype if name is None else getattr(torch, name)


def _state_keys_by_name(tensors: Mapping[str, Tensor]) -> dict[str, set[str]]:
    keys_of: dict[str, set[str]] = {}
    for full_name in tensors:
        key, separator, name = full_name.partition(_SEPARATOR)
        if not separator:
            raise CheckpointError(f"optimizer state {full_name!r} names no parameter")
        keys_of.setdefault(name, set()).add(key)
    return keys_of


def _check_names(expected: Mapping[str, Mapping[str, object]], keys_of: Mapping[str, set[str]]) -> None:
    wanted = {name for name, keys in expected.items() if keys}
    saved = set(keys_of)
    known = set(expected)
    for names, what in (
        (saved - known, "is not in the model"),
        (wanted - saved, "has no saved optimizer state"),
        ((saved & known) - wanted, "has saved optimizer state, and this optimizer keeps none"),
    ):
        if names:
            raise CheckpointError(f"parameter {min(names)!r} {what} ({len(names)} such)", _FOREIGN)
    for name, keys in keys_of.items():
        for odd, what in ((set(expected[name]) - keys, "is missing"), (keys - set(expected[name]), "is not its own")):
            if odd:
                raise CheckpointError(f"optimizer state {min(odd)!r} of {name!r} {what}", _FOREIGN)


def _check_tensor(key: str, name: str, saved: Tensor, shape: tuple[int, ...], wanted: torch.dtype) -> None:
    """`saved` must have this shape and type; a step count is a floating point scalar of any width."""
    dtype = wanted if shape or not saved.is_floating_point() else saved.dtype
    if tuple(saved.shape) != shape or saved.dtype != dtype:
        raise CheckpointError(
            f"optimizer state {key!r} of {name!r} is {tuple(saved.shape)} {saved.dtype}, not {shape} {dtype}",
            _FOREIGN,
        )


def _put(state: dict[str, Any], key: str, saved: Tensor, parameter: nn.Parameter, group: dict[str, Any]) -> None:
    """Copy `saved` into the state, where torch keeps it: with the parameter, or on the host for a plain step count."""
    current = state.get(key)
    if current is None:
        on_host = saved.dim() == 0 and not (group.get("fused") or group.get("capturable"))
        device = torch.device("cpu") if on_host else parameter.device
        current = state[key] = torch.empty_like(saved, device=device)
    current.copy_(saved)
