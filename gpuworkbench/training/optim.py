"""The optimizer of a run: built by name, its rates set, its gradients clipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpuworkbench import registry
from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.config.storage import storage_of
from gpuworkbench.errors import ConfigError
from gpuworkbench.training.optimizers.groups import trainable_by_role

# memory.* storage of weights and state -> "module:function(parameters by role, OptimizerConfig, MemoryConfig, seed)".
# All of them are AdamW; what is not here is the optimizer of the registry.
STORED_ADAMW = {
    "packed": "gpuworkbench.training.optimizers.compact_adamw:build_packed",
    "stochastic": "gpuworkbench.training.optimizers.compact_adamw:build_stochastic",
    "streamed": "gpuworkbench.training.optimizers.streamed_adamw:build",
    "streamed_master": "gpuworkbench.training.optimizers.streamed_adamw:build",
}

PLAIN = MemoryConfig()


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    device: torch.device,
    memory: MemoryConfig = PLAIN,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """The optimizer that `config.name` names, stored as `memory` says, over the model's trainable parameters, each
    once (tied ones too). `seed` is that of random rounding.

    Raises ConfigError for an unknown name or when nothing is trainable.
    """
    entry = registry.lookup(registry.OPTIMIZERS, config.name, "optimizer.name")
    parameters = trainable_by_role(model)
    if not parameters:
        raise ConfigError("the model has no trainable parameters", "leave at least one part of it unfrozen")
    stored = STORED_ADAMW.get(storage_of(memory))
    if stored is not None:
        return registry.load(stored)(parameters, config, memory, seed)
    return registry.load(entry.implementation)(parameters, config, device)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate of the coming step, times the group's own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


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
