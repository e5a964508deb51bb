"""AdamW against the paper's formula and torch's plain version; its state by name, saved and restored bit for bit."""

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.errors import CheckpointError, ConfigError
from gpuworkbench.models import build_model
from gpuworkbench.training.optim import build_optimizer, clip_grad_norm, set_lr
from gpuworkbench.training.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

CPU = torch.device("cpu")
CONFIG = OptimizerConfig(lr=1e-2, weight_decay=0.1)
MODEL = Gpt2Config(n_layer=2, n_head=2, n_embd=32, seq_len=16, vocab_size=100)


def train(model, optimizer, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        idx = torch.randint(100, (4, 17), generator=torch.Generator().manual_seed(step))
        set_lr(optimizer, CONFIG.lr / (1 + step))
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


class OneMatrix(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3))
        self.bias = torch.nn.Parameter(torch.tensor([0.5, -0.5], dtype=torch.float64))


def test_the_update_is_the_papers():
    model = OneMatrix()
    config = OptimizerConfig(lr=0.01, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.3)
    optimizer = build_optimizer(model, config, CPU)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    m = {n: torch.zeros_like(p) for n, p in expected.items()}
    v = {n: torch.zeros_like(p) for n, p in expected.items()}
    for t in range(1, 6):
        for p in model.parameters():
            p.grad = torch.sin(p.detach() * t)
        optimizer.step()
        for name, p in expected.items():
            g = torch.sin(p * t)
            decay = 0.3 if name == "weight" else 0.0
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g * g
            m_hat, v_hat = m[name] / (1 - 0.8**t), v[name] / (1 - 0.9**t)
            expected[name] = p - 0.01 * decay * p - 0.01 * m_hat / (v_hat.sqrt() + 1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_it_equals_torchs_plain_adamw():
    # fp64: the gradient of the keys' bias is 0 but for rounding, and Adam would blow an fp32 rounding up
    ours, theirs = build_model(MODEL, seed=0).double(), build_model(MODEL, seed=0).double()
    optimizer = build_optimizer(ours, CONFIG, CPU)
    assert optimizer.defaults["fused"]
    parameters = list(theirs.parameters())
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        foreach=False,
        fused=False,
    )
    assert train(ours, optimizer, 5) == pytest.approx(train(theirs, reference, 5), rel=1e-10)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1 + 1e-7, 1 - 1e-7, 1 - 1e-6, 2.0, 1e6, float("inf"), float("nan")])
@pytest.mark.parametrize("max_norm", [1.0, 0.01])
def test_clipping_equals_torchs_bit_for_bit(scale, max_norm):
    ours, theirs = build_model(MODEL, seed=0), build_model(MODEL, seed=0)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        q.grad = p.grad
    unit = torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()])
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.grad = p.grad / unit * max_norm * scale
        q.grad = p.grad.clone()
    ours.wpe.weight.grad = theirs.wpe.weight.grad = None  # no gradient is not an error
    norms = clip_grad_norm(ours, max_norm), torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    torch.testing.assert_close(*norms, rtol=0, atol=0, equal_nan=True)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0, equal_nan=True)


def test_clipping_at_0_is_off():
    model = build_model(MODEL, seed=0)
    model.wpe.weight.grad = torch.full_like(model.wpe.weight, 100.0)
    assert clip_grad_norm(model, 0.0) == pytest.approx(100.0 * model.wpe.weight.numel() ** 0.5)
    assert torch.all(model.wpe.weight.grad == 100.0)


def test_decay_on_matrices_only_and_each_parameter_once():
    model = build_model(MODEL, seed=0)
    optimizer = build_optimizer(model, CONFIG, CPU)
    grouped = [(p, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p, _ in grouped} == {id(p) for p in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))
    assert all(decay == (0.1 if p.dim() >= 2 else 0.0) for p, decay in grouped)


def test_frozen_parameters_are_left_out_and_all_frozen_is_refused():
    model = build_model(MODEL, seed=0)
    model.wte.weight.requires_grad_(False)
    optimizer = build_optimizer(model, CONFIG, CPU)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters())) - 1
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimizer(model, CONFIG, CPU)


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"optimizer\.name = 'adamm'") as caught:
        build_optimizer(build_model(MODEL, seed=0), OptimizerConfig(name="adamm"), CPU)
    assert "did you mean 'adamw'" in caught.value.line()


class LazyFile:
    """A safetensors file as a mapping, one tensor in memory at a time, counting the reads."""

    def __init__(self, path):
        self.file = safe_open(path, framework="pt")
        self.reads = []

    def __iter__(self):
        return iter(self.file.keys())

    def __getitem__(self, name):
        self.reads.append(name)
        return self.file.get_tensor(name)


def test_resume_is_bit_exact_through_a_file(tmp_path):
    straight = build_model(MODEL, seed=0)
    straight_losses = train(straight, build_optimizer(straight, CONFIG, CPU), 10)

    first = build_model(MODEL, seed=0)
    optimizer = build_optimizer(first, CONFIG, CPU)
    losses = train(first, optimizer, 5)
    state = optimizer_state_by_name(first, optimizer)
    assert {key.partition("/")[0] for key in state} == {"step", "exp_avg", "exp_avg_sq"}
    save_file(state, tmp_path / "optimizer.safetensors")
    save_file(dict(first.named_parameters()), tmp_path / "model.safetensors")

    second = build_model(MODEL, seed=1)
    second_optimizer = build_optimizer(second, CONFIG, CPU)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file, torch.no_grad():
        for name, parameter in second.named_parameters():
            parameter.copy_(file.get_tensor(name))
    lazy = LazyFile(tmp_path / "optimizer.safetensors")
    load_optimizer_state_by_name(second, second_optimizer, lazy)
    assert sorted(lazy.reads) == sorted(state)  # each once
    losses += train(second, second_optimizer, 5, first=5)

    assert losses == straight_losses
    for (name, p), q in zip(straight.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


def test_state_that_exists_is_overwritten_in_place():
    model = build_model(MODEL, seed=0)
    optimizer = build_optimizer(model, CONFIG, CPU)
    train(model, optimizer, 2)
    saved = copy.deepcopy(optimizer_state_by_name(model, optimizer))
    train(model, optimizer, 2)
    addresses = {k: t.data_ptr() for k, t in optimizer_state_by_name(model, optimizer).items()}
    load_optimizer_state_by_name(model, optimizer, saved)
    for key, tensor in optimizer_state_by_name(model, optimizer).items():
        assert torch.equal(tensor, saved[key]), key
        assert tensor.data_ptr() == addresses[key] != saved[key].data_ptr(), key


def test_before_the_first_step_there_is_no_state_and_that_restores_too():
    model = build_model(MODEL, seed=0)
    optimizer = build_optimizer(model, CONFIG, CPU)
    assert optimizer_state_by_name(model, optimizer) == {}
    train(model, optimizer, 1)
    load_optimizer_state_by_name(model, optimizer, {})
    assert optimizer_state_by_name(model, optimizer) == {}


def broken(state, what):
    state = dict(state)
    if what == "missing":
        del state["exp_avg/h.0.ln_1.weight"], state["exp_avg_sq/h.0.ln_1.weight"], state["step/h.0.ln_1.weight"]
    elif what == "foreign":
        state["exp_avg/h.9.ln_1.weight"] = torch.zeros(32)
    elif what == "shape":
        state["exp_avg/wpe.weight"] = torch.zeros(3, 3)
    elif what == "moment gone":
        del state["exp_avg_sq/wpe.weight"]
    elif what == "scalar moment":
        state["exp_avg/wpe.weight"] = torch.tensor(1.0)
    elif what == "type":
        state["exp_avg/wpe.weight"] = state["exp_avg/wpe.weight"].half()
    elif what == "nameless":
        state["exp_avg"] = torch.zeros(1)
    return state


@pytest.mark.parametrize("what", ["missing", "foreign", "shape", "moment gone", "scalar moment", "type", "nameless"])
def test_state_of_another_model_is_refused(what):
    model = build_model(MODEL, seed=0)
    optimizer = build_optimizer(model, CONFIG, CPU)
    train(model, optimizer, 1)
    state = broken(optimizer_state_by_name(model, optimizer), what)
    fresh = build_model(MODEL, seed=0)
    with pytest.raises(CheckpointError) as caught:
        load_optimizer_state_by_name(fresh, build_optimizer(fresh, CONFIG, CPU), state)
    assert "\n" not in caught.value.line()


def test_state_that_is_not_a_tensor_is_a_programming_error():
    model = build_model(MODEL, seed=0)
    optimizer = build_optimizer(model, CONFIG, CPU)
    optimizer.state[model.wpe.weight]["count"] = 3
    with pytest.raises(TypeError, match=r"'count' of wpe\.weight is int"):
        optimizer_state_by_name(model, optimizer)
