"""The optimizer of a run, and its state as flat tensors by parameter name, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpuworkbench import registry
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.errors import CheckpointError, ConfigError

FUSED_DEVICES = ("cpu", "cuda")
_FOREIGN = "the checkpoint is from another model or optimizer"
_SEPARATOR = "/"  # module names cannot hold it: "exp_avg/h.0.ln_1.weight"


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that `config.name` names, over the model's trainable parameters, each once (tied ones too).

    Raises ConfigError for an unknown name or when nothing is trainable.
    """
    build = registry.load(registry.lookup(registry.OPTIMIZERS, config.name, "optimizer.name"))
    parameters = dict(_trainable(model))
    if not parameters:
        raise ConfigError("the model has no trainable parameters", "leave at least one part of it unfrozen")
    return build(parameters, config, device)


def build_adamw(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) in one kernel a tensor list where torch has it. Decay on matrices only."""
    decayed = [p for p in parameters.values() if p.dim() >= 2]
    others = [p for p in parameters.values() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type in FUSED_DEVICES,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients so that their global norm is at most `max_norm` (0: never); returns the norm before, 0-dim.

    Equal to torch.nn.utils.clip_grad_norm_, bit for bit. On a CPU the pass over the gradients is left out when there
    is nothing to clip; on a card finding that out would make the host wait.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0 and (norm.device.type != "cpu" or not norm < max_norm * (1 - 1e-6) - 1e-6):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def optimizer_state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "state key/parameter name" -> tensor, without copies; empty before the first step.

    Learning rate, betas and the like are not in it: they are configuration. Raises TypeError for state that is not a
    tensor.
    """
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
    Raises CheckpointError when names, shapes or types do not match; then the optimizer must not be used.
    """
    parameters = dict(_trainable(model))
    keys_of = _state_keys_by_name(tensors)
    _check_names(set(parameters), keys_of)
    if not keys_of:
        optimizer.state.clear()
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scalar_keys: dict[str, bool] = {}
    for name, keys in keys_of.items():
        parameter = parameters[name]
        for key in keys:
            saved = tensors[f"{key}{_SEPARATOR}{name}"]
            is_scalar = scalar_keys.setdefault(key, saved.dim() == 0)
            _check_tensor(key, name, saved, None if is_scalar else parameter)
            _put(optimizer.state[parameter], key, saved, parameter, groups[id(parameter)])


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _state_keys_by_name(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    keys_of: dict[str, list[str]] = {}
    for full_name in tensors:
        key, separator, name = full_name.partition(_SEPARATOR)
        if not separator:
            raise CheckpointError(f"optimizer state {full_name!r} names no parameter")
        keys_of.setdefault(name, []).append(key)
    return keys_of


def _check_names(expected: set[str], keys_of: Mapping[str, list[str]]) -> None:
    if not keys_of:
        return  # saved before the first step
    saved = set(keys_of)
    for names, what in ((saved - expected, "is not in the model"), (expected - saved, "has no saved optimizer state")):
        if names:
            raise CheckpointError(f"parameter {min(names)!r} {what} ({len(names)} such)", _FOREIGN)
    complete = set().union(*keys_of.values())
    for name, keys in keys_of.items():
        missing = complete.difference(keys)
        if missing:
            raise CheckpointError(f"optimizer state {min(missing)!r} of {name!r} is missing", _FOREIGN)


def _check_tensor(key: str, name: str, saved: Tensor, parameter: nn.Parameter | None) -> None:
    """`saved` must be a scalar where `parameter` is None, else of the parameter's shape and type."""
    shape = () if parameter is None else tuple(parameter.shape)
    dtype = saved.dtype if parameter is None else parameter.dtype
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
