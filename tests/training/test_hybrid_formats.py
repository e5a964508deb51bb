"""Jumps over weights and optimizer state in every format: undone bit for bit, moments damped and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpuworkbench.config.schema import MemoryConfig, OptimizerConfig
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.damping import damp_moments
from gpuworkbench.hybrid.undo import JumpUndo
from gpuworkbench.memory.adam_formats import Bf16, Packed
from gpuworkbench.memory.pieces import pieces
from gpuworkbench.memory.weights import weights_of
from gpuworkbench.training.optim import build_optimizer

CPU = torch.device("cpu")
FORMATS = {
    "fp32": MemoryConfig(),
    "packed": MemoryConfig(weights="bf16", packed_optimizer=True),
    "stochastic": MemoryConfig(weights="bf16", stochastic_rounding=True),
    "streamed": MemoryConfig(optimizer_offload="streamed"),
    "streamed_master": MemoryConfig(weights="bf16", optimizer_offload="streamed"),
}


def trained(memory: MemoryConfig) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Two layers after three steps."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if memory.weights == "bf16" else torch.float32
    model = torch.nn.Sequential(torch.nn.Linear(20, 30, dtype=dtype), torch.nn.Linear(30, 5, dtype=dtype))
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-2), CPU, memory, 1)
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
    optimizer.step()


def held(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor that holds weights or state."""
    weights = weights_of(optimizer)
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        found |= {f"{name}/{i}": tensor.clone() for i, tensor in enumerate(weights.raw(parameter))}
        found |= {f"{name}/{key}": value.clone() for key, value in optimizer.state[parameter].items()}
    return found


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
def test_a_jump_and_the_steps_after_it_are_undone(memory: MemoryConfig) -> None:
    model, optimizer = trained(memory)
    body = Body(model, weights_of(optimizer), CPU)
    undo = JumpUndo(body, optimizer)
    before = held(model, optimizer)
    undo.save(3)
    for name in body.parameters:
        target = body.read(name) + 0.125
        body.add(name, torch.full_like(target, 0.125))
        torch.testing.assert_close(body.read(name), target, rtol=2**-8, atol=0)
    assert differing(before, held(model, optimizer))
    undo.restore_weights()
    assert not differing(before, held(model, optimizer))
    step(model, optimizer)
    step(model, optimizer)
    undo.restore()
    assert not differing(before, held(model, optimizer))


@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
def test_moments_are_damped_and_nothing_else_is(memory: MemoryConfig) -> None:
    model, optimizer = trained(memory)
    before, values = held(model, optimizer), moments(model, optimizer, memory)
    damp_moments(optimizer, 0.5)
    assert not {name for name in differing(before, held(model, optimizer)) if "exp_avg" not in name}
    for old, new in zip(values, moments(model, optimizer, memory), strict=True):
        assert torch.equal(new, old * 0.5)


def moments(model: Any, optimizer: torch.optim.Optimizer, memory: MemoryConfig) -> list[torch.Tensor]:
    """m and v of each parameter as fp32 values."""
    found = []
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        if memory.packed_optimizer or memory.stochastic_rounding:
            format = Packed() if memory.packed_optimizer else Bf16()
            for piece in pieces(parameter.numel()):
                read = format.read(parameter.detach(), state, piece)
                found += [read.m.clone(), read.v.clone()]
        else:
            found += [state["exp_avg"].clone(), state["exp_avg_sq"].clone()]
    return found
