"""Streamed AdamW against torch's AdamW on fp32 values, bit for bit, and its state on the way."""

import copy

import pytest
import torch

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.schema import MemoryConfig, OptimizerConfig, RunConfig
from gpuworkbench.config.storage import storage_bytes
from gpuworkbench.memory.bf16_weights import keep_fp32_gradients, store_in_bf16
from gpuworkbench.memory.weights import weights_of
from gpuworkbench.models import build_model
from gpuworkbench.training.optim import build_optimizer
from gpuworkbench.training.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name
from gpuworkbench.training.optimizers.groups import groups_by_decay, trainable_by_role
from gpuworkbench.training.optimizers.streamed_adamw import StreamedAdamW

CPU = torch.device("cpu")
MODEL = Gpt2Config(n_layer=1, n_head=2, n_embd=32, seq_len=16, vocab_size=64)
CONFIG = OptimizerConfig(lr=1e-2, weight_decay=0.1)
KINDS = {"fp32": "fp32", "masters": "bf16"}
each_kind = pytest.mark.parametrize("weights", KINDS.values(), ids=KINDS)


def model_of(weights, seed=0):
    model = build_model(MODEL, seed=seed)
    if weights == "bf16":
        store_in_bf16(model)
        keep_fp32_gradients(model)
    return model


def streamed(model, weights, bucket):
    """Buckets of so many elements: the config's smallest holds all of a small model."""
    state = "master_adam" if weights == "bf16" else "adam"
    groups = groups_by_decay(trainable_by_role(model), CONFIG, state)
    return StreamedAdamW(groups, CONFIG.lr, bucket=bucket)


def backward(model, step):
    idx = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(step))
    with torch.autocast("cpu", torch.bfloat16, enabled=model.head_weight.dtype == torch.bfloat16):
        loss = model(idx[:, :-1], idx[:, 1:])
    loss.backward()
    return loss.item()


def train(model, optimizer, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        optimizer.prefetch()  # as the run does, before forward
        losses.append(backward(model, step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


@each_kind
@pytest.mark.parametrize("bucket", [256, 4096, 1 << 20])
def test_every_step_is_torchs_bit_for_bit(weights, bucket):
    """torch.optim.AdamW(foreach=False) on fp32 copies, with this model's gradients; state, masters and weights."""
    model = model_of(weights)
    optimizer = streamed(model, weights, bucket)
    masters = {name: torch.nn.Parameter(p.detach().float().clone()) for name, p in model.named_parameters()}
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in masters.values() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in masters.values() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=CONFIG.lr,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for step in range(4):
        optimizer.prefetch()
        backward(model, step)
        for name, p in model.named_parameters():
            assert p.grad.dtype == torch.float32
            masters[name].grad = p.grad.clone()
        optimizer.step()
        reference.step()
        optimizer.zero_grad(set_to_none=True)
        for name, p in model.named_parameters():
            assert torch.equal(p, masters[name].to(p.dtype)), name
            assert torch.equal(weights_of(optimizer).read(p), masters[name]), name
    optimizer.settle()
    for name, p in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[p][key], reference.state[masters[name]][key]), (key, name)


def test_gradients_of_bf16_weights_are_added_up_in_fp32():
    model, single = model_of("bf16"), model_of("bf16")
    parts = []
    for step in range(3):
        backward(single, step)
        parts.append({name: p.grad for name, p in single.named_parameters()})
        single.zero_grad(set_to_none=True)
        backward(model, step)
    for name, p in model.named_parameters():
        whole = parts[0][name] + parts[1][name] + parts[2][name]
        assert torch.equal(p.grad, whole), name
        assert not torch.equal(whole, whole.to(torch.bfloat16).float()), name


@each_kind
def test_a_move_that_is_left_out_is_seen(weights):
    """What was fetched is poison where it was, and what was given back is poison in its slot."""
    model = model_of(weights)
    optimizer = streamed(model, weights, 256)
    train(model, optimizer, 1)
    optimizer.settle()
    assert optimizer.host.isfinite().all()
    assert optimizer.conveyor.staging.isnan().all()
    optimizer.prefetch()
    assert optimizer.host[:, :512].isnan().all()
    assert optimizer.host[:, 512:].isfinite().all()
    assert optimizer.conveyor.staging.isfinite().all()
    optimizer.settle()
    assert optimizer.host.isfinite().all()


@each_kind
def test_a_resumed_training_is_the_straight_one_bit_for_bit(weights):
    straight = model_of(weights)
    optimizer = streamed(straight, weights, 512)
    losses = train(straight, optimizer, 6)
    first = model_of(weights)
    first_optimizer = streamed(first, weights, 512)
    train(first, first_optimizer, 3)
    first_optimizer.prefetch()  # saved in the midst: comes back first
    saved = {name: tensor.clone() for name, tensor in optimizer_state_by_name(first, first_optimizer).items()}
    second = copy.deepcopy(first)
    if weights == "bf16":
        keep_fp32_gradients(second)
    second_optimizer = streamed(second, weights, 4096)  # another size of buckets changes nothing
    load_optimizer_state_by_name(second, second_optimizer, saved)
    assert train(second, second_optimizer, 3, first=3) == losses[3:]
    end, expected = (optimizer_state_by_name(m, o) for m, o in ((second, second_optimizer), (straight, optimizer)))
    assert set(end) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(end[name], tensor), name


@each_kind
def test_bytes_are_those_of_the_plan(weights):
    memory = MemoryConfig(weights=weights, optimizer_offload="streamed", offload_bucket_mib=1)
    model = model_of(weights)
    optimizer = build_optimizer(model, CONFIG, CPU, memory)
    backward(model, 0)
    planned = storage_bytes(RunConfig(schema_version=1, model=MODEL, memory=memory))
    assert planned.host_state == optimizer.arena.num_bytes
    largest = max(p.numel() for p in model.parameters())
    assert planned.staging == optimizer.conveyor.staging.nbytes + 8 * largest
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert planned.weights == sum(p.nbytes for p in model.parameters())


def test_transfers_are_counted():
    model = model_of("bf16")
    optimizer = streamed(model, "bf16", 1024)
    train(model, optimizer, 1)
    lanes = optimizer.conveyor.lanes
    lanes.end_step(1)
    (moved,) = lanes.moved()
    assert moved.step == 1
    assert moved.in_bytes == moved.out_bytes == optimizer.arena.num_bytes
    assert moved.in_s > 0
    assert moved.in_hidden_s == moved.out_hidden_s == 0.0  # on a CPU nothing computes meanwhile
    assert lanes.moved() == []


def test_masters_are_read_written_and_undone():
    model = model_of("bf16")
    optimizer = streamed(model, "bf16", 1024)
    train(model, optimizer, 1)
    optimizer.prefetch()
    weights, parameter = weights_of(optimizer), model.h[0].attn.c_attn.weight
    before = [tensor.clone() for tensor in weights.raw(parameter)]
    value = weights.read(parameter) + 1e-6
    weights.write(parameter, value)
    assert torch.equal(weights.read(parameter), value)
    assert torch.equal(parameter, value.to(torch.bfloat16))
    for tensor, saved in zip(weights.raw(parameter), before, strict=True):
        tensor.copy_(saved)
    assert torch.equal(weights.read(parameter), before[1])
