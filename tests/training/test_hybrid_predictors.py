"""Each predictor against its formula, and what all of them promise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpuworkbench import registry
from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.predictors import predictor_state_bytes, spec_of
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.predictors.base import Predictor
from gpuworkbench.hybrid.predictors.ema_trend import BETA
from gpuworkbench.hybrid.predictors.subspace import continued
from gpuworkbench.hybrid.undo import JumpUndo
from gpuworkbench.memory.weights import Weights

FULL_STEPS = 8


class Tied(nn.Module):
    """Two blocks, a tied head and a frozen table."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.wte = nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float32).to(dtype))
        self.head = self.wte
        self.h = nn.ModuleList([nn.Linear(4, 4, dtype=dtype) for _ in range(2)])
        self.frozen = nn.Parameter(torch.ones(5, dtype=dtype), requires_grad=False)
        for parameter in self.h.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)


def walk(model: nn.Module, step: int, scale: float = 0.05) -> None:
    """One true step: some displacement of the trainable weights, a function of the step."""
    generator = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def config_of(name: str, **keys: Any) -> HybridConfig:
    return HybridConfig(enabled=True, predictor=name, full_steps=FULL_STEPS, **keys)


def make(name: str, model: nn.Module, **keys: Any) -> Predictor:
    body = Body(model, Weights(), torch.device("cpu"))
    predictor: Predictor = registry.load(registry.PREDICTORS[name].implementation)(body, config_of(name, **keys), 7)
    return predictor


def full_phase(predictor: Predictor, model: nn.Module, first: int = 0, steps: int = FULL_STEPS) -> int:
    """A full phase from step `first` on, as the trainer tells of it."""
    predictor.observe(first, steps)
    for step in range(first + 1, first + steps + 1):
        walk(model, step)
        predictor.observe(step, first + steps - step)
    return first + steps


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# What all of them promise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", registry.PREDICTORS)
def test_a_jump_is_undone_bit_for_bit_and_leaves_frozen_weights_alone(name: str, dtype: torch.dtype) -> None:
    model = Tied(dtype)
    predictor = make(name, model)
    undo = JumpUndo(predictor.body, torch.optim.SGD(model.parameters()))
    step = full_phase(predictor, model)
    assert predictor.ready() == ""
    before = values(model)
    undo.save(step)
    predictor.propose(FULL_STEPS, step)
    after = values(model)
    assert torch.equal(before["frozen"], after["frozen"])
    assert (predictor.body.moved() > 0) == (name != "null")
    assert any(not torch.equal(before[key], after[key]) for key in before) == (name != "null")
    assert model.head is model.wte
    undo.restore_weights()
    assert_same(values(model), before)


@pytest.mark.parametrize("name", registry.PREDICTORS)
def test_its_bytes_are_what_its_spec_says(name: str) -> None:
    model = Tied()
    predictor = make(name, model)
    full_phase(predictor, model)
    full_phase(predictor, model, first=FULL_STEPS)
    n_trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert predictor.num_bytes == predictor_state_bytes(config_of(name), n_trainable)


@pytest.mark.parametrize("name", registry.PREDICTORS)
def test_a_restored_one_proposes_the_same(name: str) -> None:
    model = Tied()
    predictor = make(name, model)
    full_phase(predictor, model, steps=FULL_STEPS)
    full_phase(predictor, model, first=FULL_STEPS, steps=FULL_STEPS - 3)
    twin_model = Tied()
    twin_model.load_state_dict(model.state_dict())
    twin = make(name, twin_model)
    part = predictor.state()
    part.tensors = {key: tensor.clone() for key, tensor in sorted(part.tensors.items())}
    twin.load(part)
    for one, its_model in ((predictor, model), (twin, twin_model)):
        for step in range(2 * FULL_STEPS - 2, 2 * FULL_STEPS + 1):
            if step == 2 * FULL_STEPS:
                one.observe(step - 1, 1)
            walk(its_model, step)
            one.observe(step, 2 * FULL_STEPS - step)
        one.propose(4, 2 * FULL_STEPS)
    assert_same(values(twin_model), values(model))
    assert twin.state().values == predictor.state().values


@pytest.mark.parametrize("name", [name for name in registry.PREDICTORS if not spec_of(name).averages])
def test_a_proposal_can_be_repeated(name: str) -> None:
    model = Tied()
    predictor = make(name, model)
    undo = JumpUndo(predictor.body, torch.optim.SGD(model.parameters()))
    step = full_phase(predictor, model)
    undo.save(step)
    predictor.propose(3, step)
    first = values(model)
    undo.restore_weights()
    predictor.propose(3, step)
    assert_same(values(model), first)


@pytest.mark.parametrize("name", registry.PREDICTORS)
def test_without_history_there_is_nothing_to_propose(name: str) -> None:
    predictor = make(name, Tied())
    assert (predictor.ready() == "") == (name == "null")


def test_state_of_another_predictor_is_passed_over() -> None:
    """A fork may choose another one."""
    model = Tied()
    other = make("line_jump", model)
    full_phase(other, model)
    predictor = make("outer_nesterov", model)
    predictor.load(other.state())
    assert predictor.num_bytes == 0


# Formulas


@pytest.mark.parametrize(("momentum", "lr"), [(0.5, 0.7), (0.67, 1.0), (0.0, 0.4)])
def test_outer_nesterov_is_sgd_with_nesterov_momentum_on_slow_weights(momentum: float, lr: float) -> None:
    model = Tied()
    predictor = make("outer_nesterov", model, outer_momentum=momentum, outer_lr=lr)
    slow = {name: nn.Parameter(tensor) for name, tensor in values(model).items() if name != "frozen"}
    reference = torch.optim.SGD(slow.values(), lr=lr, momentum=momentum, nesterov=momentum > 0)
    step = 0
    for _ in range(5):
        step = full_phase(predictor, model, first=step)
        fast = values(model)
        for name, parameter in slow.items():
            parameter.grad = parameter.detach() - fast[name]
        reference.step()
        predictor.propose(FULL_STEPS, step)
        predictor.accepted()
        for name, parameter in slow.items():
            torch.testing.assert_close(values(model)[name], parameter.detach(), rtol=1e-6, atol=1e-6)


def test_outer_nesterov_begins_anew_where_it_was_undone() -> None:
    model = Tied()
    predictor = make("outer_nesterov", model)
    undo = JumpUndo(predictor.body, torch.optim.SGD(model.parameters()))
    step = full_phase(predictor, model)
    undo.save(step)
    predictor.propose(FULL_STEPS, step)
    undo.restore_weights()
    predictor.rejected()
    for name, slow in predictor.slots["slow"].items():
        assert torch.equal(slow, values(model)[name])
        assert not predictor.slots["momentum"][name].any()


def test_line_jump_repeats_the_last_step() -> None:
    model = Tied()
    predictor = make("line_jump", model)
    full_phase(predictor, model, steps=FULL_STEPS - 1)
    predictor.observe(FULL_STEPS - 1, 1)
    before = values(model)
    walk(model, FULL_STEPS)
    predictor.observe(FULL_STEPS, 0)
    last = values(model)
    predictor.propose(4, FULL_STEPS)
    for name, now in values(model).items():
        torch.testing.assert_close(now, last[name] + 4 * (last[name] - before[name]))


def test_line_jump_knows_when_its_step_is_old() -> None:
    model = Tied()
    predictor = make("line_jump", model)
    full_phase(predictor, model)
    assert predictor.ready() == ""
    walk(model, FULL_STEPS + 1)
    predictor.observe(FULL_STEPS + 1, 5)
    assert predictor.ready() == "the step to repeat has not been seen"


def test_ema_trend_is_the_bias_corrected_mean_of_displacements() -> None:
    model = Tied()
    predictor = make("ema_trend", model)
    stride = FULL_STEPS // 4
    looks = [values(model)]
    predictor.observe(0, FULL_STEPS)
    for step in range(1, 2 * FULL_STEPS + 1):
        walk(model, step)
        predictor.observe(step, 1)
        if step % stride == 0:
            looks.append(values(model))
    last = values(model)
    predictor.propose(5, 2 * FULL_STEPS)
    displacements = [{name: (new[name] - old[name]) / stride for name in old} for old, new in itertools.pairwise(looks)]
    weights = [(1 - BETA) * BETA ** (len(displacements) - 1 - i) for i in range(len(displacements))]
    for name, now in values(model).items():
        trend = sum(w * d[name] for w, d in zip(weights, displacements, strict=True)) / sum(weights)
        torch.testing.assert_close(now, last[name] + 5 * trend, rtol=1e-5, atol=1e-6)


def test_random_is_as_long_as_the_trend_and_leads_elsewhere() -> None:
    model = Tied()
    predictor = make("random", model)
    start = values(model)
    step = full_phase(predictor, model)
    before = values(model)
    predictor.propose(3, step)
    for name in predictor.body.parameters:
        moved, trend = values(model)[name] - before[name], before[name] - start[name]
        torch.testing.assert_close(moved.norm(), trend.norm() * 3 / FULL_STEPS)
    one = values(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    predictor.propose(3, step + 1)
    assert not torch.equal(values(model)["wte"], one["wte"])


def displacements_of(modes: list[tuple[float, int]], count: int) -> Tensor:
    """(count, n) displacements that are sums of geometric series: ratio and direction of each."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(len(modes), 12, generator=generator, dtype=torch.float64)
    return torch.stack([sum(r**i * s * d for (r, s), d in zip(modes, directions, strict=True)) for i in range(count)])


@pytest.mark.parametrize("length", [0.4, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("modes", [[(0.9, 1)], [(0.9, 1), (0.5, 2)], [(0.95, 1), (0.7, 1), (0.2, 3)]])
def test_the_recurrence_continues_geometric_series(modes: list[tuple[float, int]], length: float) -> None:
    rows = displacements_of(modes, 12)
    seen = rows[:5]
    coefficients = continued(seen @ seen.T, length)
    whole = int(length)
    expected = rows[5 : 5 + whole].sum(0) + (length - whole) * rows[5 + whole]
    torch.testing.assert_close(coefficients @ seen, expected, rtol=0.01, atol=0.01)


def test_what_grows_is_held_to_the_longest_seen() -> None:
    rows = displacements_of([(1.5, 1)], 5)
    coefficients = continued(rows @ rows.T, 3.0)
    assert (coefficients @ rows).norm() == pytest.approx(3 * float(rows[-1].norm()), rel=1e-3)
