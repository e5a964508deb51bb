"""AdamW in small formats against torch's AdamW in fp32, its bytes counted, its state saved and restored bit for bit."""

import copy
import math

import pytest
import torch
from torch.profiler import profile

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.schema import MemoryConfig, OptimizerConfig, RunConfig
from gpuworkbench.config.storage import UPDATE_ELEMENTS, UPDATE_SCRATCH_BYTES, storage_bytes
from gpuworkbench.errors import CheckpointError
from gpuworkbench.memory.bf16_weights import store_in_bf16
from gpuworkbench.memory.weights import Weights, weights_of
from gpuworkbench.models import build_model
from gpuworkbench.training.optim import build_optimizer, set_lr
from gpuworkbench.training.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

CPU = torch.device("cpu")
MODEL = Gpt2Config(n_layer=1, n_head=2, n_embd=32, seq_len=16, vocab_size=64)
FORMATS = {
    "packed": MemoryConfig(weights="bf16", packed_optimizer=True),
    "stochastic": MemoryConfig(weights="bf16", stochastic_rounding=True),
}
each_format = pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)


class Holder(torch.nn.Module):
    """One matrix of bf16 weights."""

    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(value.to(torch.bfloat16))


def holder(rows=8, columns=300, seed=0):
    return Holder(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))


def optimizer_of(model, memory, seed=1, **keys):
    config = OptimizerConfig(**{"lr": 1e-3, "weight_decay": 0.0, **keys})
    return build_optimizer(model, config, CPU, memory, seed)


def gradients(shape, steps, seed=5):
    """Smooth ones with noise, as training has them: each element has a scale of its own."""
    source = torch.Generator().manual_seed(seed)
    scale = 10 ** (3 * torch.rand(shape, generator=source) - 4)
    base = torch.randn(shape, generator=source)
    return [(scale * (base + torch.randn(shape, generator=source))).to(torch.bfloat16) for _ in range(steps)]


def against_torch(memory, steps, **keys):
    """The values that `memory` and torch hold after as many steps from the same bf16 weights; and where they began."""
    model = holder()
    start = model.weight.detach().float()
    exact = torch.nn.Parameter(start.clone())
    optimizer = optimizer_of(model, memory, **keys)
    config = {"lr": 1e-3, "weight_decay": 0.0, **keys}
    betas = (config.pop("beta1", 0.9), config.pop("beta2", 0.95))
    reference = torch.optim.AdamW([exact], betas=betas, **config)
    for grad in gradients(start.shape, steps):
        model.weight.grad, exact.grad = grad, grad.float()
        optimizer.step()
        reference.step()
    return weights_of(optimizer).read(model.weight), exact.detach(), start


@each_format
def test_one_step_is_torchs_to_a_step_of_the_format(memory):
    found, expected, start = against_torch(memory, 1, weight_decay=0.1)
    bits = 15 if memory.packed_optimizer else 7
    assert ((found - expected).abs() <= 2.0**-bits * expected.abs() * 1.001).all()
    assert not torch.equal(expected, start)


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_packed_follows_torch_over_many_steps(beta2):
    """Gradients of a block differ a thousandfold: the small ones' moments are coarse, which is noise and no drift."""
    found, expected, start = against_torch(FORMATS["packed"], 200, weight_decay=0.1, beta2=beta2)
    moved = (expected - start).norm()
    assert (found - expected).norm() < 0.15 * moved
    slope = ((found - start) * (expected - start)).sum() / moved**2
    assert abs(slope - 1) < 0.03  # nothing is lost on the way, in the mean


def test_stochastic_bf16_follows_torch_in_the_mean():
    found, expected, start = against_torch(FORMATS["stochastic"], 200)
    slope = ((found - start) * (expected - start)).sum() / (expected - start).square().sum()
    assert abs(slope - 1) < 0.05


@each_format
def test_tiny_updates_add_up_where_rounding_to_nearest_loses_them(memory):
    """Weights of 1 and a rate of 1e-6: below half a step of bf16 (2^-9) and of 24 bits (2^-17 = 7.6e-6)."""
    steps, lr, n = 200, 1e-6, 1 << 15
    model = Holder(torch.ones(n // 256, 256))
    optimizer = optimizer_of(model, memory, lr=lr)
    nearest, exact = (torch.nn.Parameter(torch.ones(1, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    plain = torch.optim.AdamW([nearest, exact], lr=lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
    for _ in range(steps):
        for each in (model.weight, nearest, exact):
            each.grad = torch.ones_like(each)
        optimizer.step()
        plain.step()
    moved = 1 - weights_of(optimizer).read(model.weight).double()
    assert nearest.eq(1).all()  # lost
    step = 2.0**-16 if memory.packed_optimizer else 2.0**-8  # below 1
    expected = 1 - float(exact.detach())
    assert expected == pytest.approx(steps * lr, rel=0.02)
    assert abs(moved.mean() - expected) < 5 * math.sqrt(expected * step / n)


def train(model, optimizer, steps, first=0, lr=1e-2):
    losses = []
    for step in range(first, first + steps):
        source = torch.Generator().manual_seed(step)
        start = torch.randint(64, (8, 1), generator=source)
        idx = (start + 5 * torch.arange(17) + torch.randint(3, (8, 17), generator=source)) % 64
        set_lr(optimizer, lr * min(1, (step + 1) / 10))
        with torch.autocast("cpu", torch.bfloat16, enabled=model.head_weight.dtype == torch.bfloat16):
            loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def small_gpt(memory, seed=0):
    model = build_model(MODEL, seed=seed)
    if memory.weights == "bf16":
        store_in_bf16(model)
    return model, optimizer_of(model, memory, seed, weight_decay=0.1)


def end(memory):
    """Mean of 3 seeds over the last 20 of 60 losses; they begin at ln 64 = 4.16 nats."""
    return sum(sum(train(*small_gpt(memory, seed), 60)[-20:]) for seed in range(3)) / 60


@pytest.fixture(scope="module")
def fp32_end():
    return end(MemoryConfig())


@each_format
def test_a_small_gpt_ends_where_fp32_adamw_ends(memory, fp32_end):
    assert fp32_end < 2.5
    assert abs(end(memory) / fp32_end - 1) < 0.005


@each_format
def test_a_resumed_training_is_the_straight_one_bit_for_bit(memory):
    straight, optimizer = small_gpt(memory)
    losses = train(straight, optimizer, 6)
    first, first_optimizer = small_gpt(memory)
    train(first, first_optimizer, 3)
    saved = {name: tensor.clone() for name, tensor in optimizer_state_by_name(first, first_optimizer).items()}
    second = copy.deepcopy(first)
    second_optimizer = optimizer_of(second, memory, 0, weight_decay=0.1)
    load_optimizer_state_by_name(second, second_optimizer, saved)
    assert train(second, second_optimizer, 3, first=3) == losses[3:]
    end, expected = (optimizer_state_by_name(m, o) for m, o in ((second, second_optimizer), (straight, optimizer)))
    assert set(end) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(end[name], tensor), name
    for one, other in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_of_another_type_is_refused():
    model, optimizer = small_gpt(FORMATS["packed"])
    train(model, optimizer, 1)
    saved = optimizer_state_by_name(model, optimizer)
    wide = saved | {"exp_avg/ln_f.weight": saved["exp_avg/ln_f.weight"].to(torch.int16)}
    fresh, other = small_gpt(FORMATS["packed"])
    with pytest.raises(CheckpointError, match=r"'exp_avg' of 'ln_f.weight' is \(32,\) torch.int16, not .* torch.int8"):
        load_optimizer_state_by_name(fresh, other, wide)
    plain, adamw = small_gpt(FORMATS["stochastic"])
    with pytest.raises(CheckpointError, match="is not its own"):
        load_optimizer_state_by_name(plain, adamw, saved)


@each_format
def test_bytes_are_those_of_the_plan(memory):
    model, optimizer = small_gpt(memory)
    train(model, optimizer, 1)
    planned = storage_bytes(RunConfig(schema_version=1, model=MODEL, memory=memory))
    tensors = optimizer_state_by_name(model, optimizer)
    residual = sum(t.nbytes for name, t in tensors.items() if name.startswith("residual/"))
    state = sum(t.nbytes for name, t in tensors.items() if t.dim()) - residual
    assert (planned.optimizer_state, planned.residual) == (state, residual)
    assert planned.weights == planned.gradients == sum(p.nbytes for p in model.parameters())


def test_packed_takes_seven_bytes_a_parameter():
    """Measured from the tensors of a matrix of GPT-2 small, with its bf16 gradient."""
    model = Holder(torch.zeros(3072, 768))
    optimizer = optimizer_of(model, FORMATS["packed"])
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    state = sum(tensor.nbytes for tensor in optimizer.state[model.weight].values())
    total = model.weight.nbytes + model.weight.grad.nbytes + state
    assert 7.0 < total / model.weight.numel() < 7.1


@each_format
def test_fp32_copies_are_bounded(memory):
    """The peak of what an update of a parameter of 2.5 pieces allocates, by torch's profiler: not more than planned."""
    model = Holder(torch.zeros(5 * UPDATE_ELEMENTS // 2 // 1024, 1024))
    optimizer = optimizer_of(model, memory)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()  # makes the state
    with profile(profile_memory=True) as profiler:
        optimizer.step()
    now = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert 16 * UPDATE_ELEMENTS < peak <= UPDATE_SCRATCH_BYTES * UPDATE_ELEMENTS + 65_536


# The weights behind the formats


def test_packed_weights_are_read_written_and_undone():
    model, optimizer = small_gpt(FORMATS["packed"])
    weights, parameter = weights_of(optimizer), model.h[0].attn.c_attn.weight
    assert torch.equal(weights.read(parameter), parameter.float())  # before the first step
    train(model, optimizer, 2)
    value = weights.read(parameter)
    assert (value - parameter.float()).abs().max() > 0
    before = [tensor.clone() for tensor in weights.raw(parameter)]
    weights.write(parameter, value + 1e-5)
    assert ((weights.read(parameter) - value - 1e-5).abs() <= 2.0**-16 * (value + 1e-5).abs() + 1e-12).all()
    for tensor, copy_ in zip(weights.raw(parameter), before, strict=True):
        tensor.copy_(copy_)
    assert torch.equal(weights.read(parameter), value)


def test_packed_weights_can_be_written_before_the_first_step():
    model, optimizer = small_gpt(FORMATS["packed"])
    value = torch.linspace(-1, 1, MODEL.n_embd)
    weights_of(optimizer).write(model.ln_f.bias, value)
    assert ((weights_of(optimizer).read(model.ln_f.bias) - value).abs() <= 2.0**-16 * value.abs()).all()
    assert {name.partition("/")[2] for name in optimizer_state_by_name(model, optimizer)} == {
        name for name, _ in model.named_parameters()
    }


def test_stochastic_bf16_has_nothing_behind_its_weights():
    _, optimizer = small_gpt(FORMATS["stochastic"])
    assert type(weights_of(optimizer)) is Weights
