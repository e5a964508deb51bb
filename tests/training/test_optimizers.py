"""Every optimizer of the registry: equal to its reference, its state what its spec says, saved and restored exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from gpuworkbench import registry
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.optimizers import STATES, optimizer_state_bytes, setting, spec_of
from gpuworkbench.config.schema import OptimizerConfig
from gpuworkbench.errors import CheckpointError
from gpuworkbench.models import build_model
from gpuworkbench.training.optim import build_optimizer, set_lr
from gpuworkbench.training.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name
from gpuworkbench.training.optimizers import muon
from gpuworkbench.training.optimizers.groups import trainable_by_role
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, torch_settings

CPU = torch.device("cpu")
NAMES = sorted(registry.OPTIMIZERS)
MODEL = Gpt2Config(n_layer=2, n_head=2, n_embd=32, seq_len=16, vocab_size=100)
DECAY = 0.1
STEPS = 12


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models of this size are slower on two."""
    with torch_settings():
        torch.set_num_threads(1)
        yield


def make_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    """fp64: the gradient of the keys' bias is 0 but for rounding, which a division by its own size blows up."""
    return build_model(MODEL, seed=0).to(dtype)


def rate(step: int, lr: float = 1e-2) -> float:
    return lr / (1 + 0.1 * step)


def gradients(model: nn.Module, step: int) -> float:
    """Backward of one batch that the step determines; returns the loss."""
    idx = torch.randint(100, (4, 17), generator=torch.Generator().manual_seed(step))
    loss = model(idx[:, :-1], idx[:, 1:])
    loss.backward()
    return loss.item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        set_lr(optimizer, rate(step))
        losses.append(gradients(model, step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


def split(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by the names a reader of GPT-2 would go by, not by our rule."""
    found: dict[str, list[nn.Parameter]] = {"hidden": [], "table": [], "vector": []}
    for name, parameter in model.named_parameters():
        is_hidden = name.startswith("h.") and parameter.dim() == 2
        found["hidden" if is_hidden else "table" if name.startswith("w") else "vector"].append(parameter)
    return found


def decayed(model: nn.Module) -> list[dict[str, Any]]:
    roles = split(model)
    return [
        {"params": roles["hidden"] + roles["table"], "weight_decay": DECAY},
        {"params": roles["vector"], "weight_decay": 0.0},
    ]


class FormulaLion:
    """Algorithm 2 of the paper, in its own words."""

    def __init__(self, model: nn.Module, beta1: float, beta2: float) -> None:
        self.groups, self.betas = decayed(model), (beta1, beta2)
        self.m = {id(p): torch.zeros_like(p) for p in model.parameters()}
        self.lr = math.nan

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2 = self.betas
        for group in self.groups:
            for p in group["params"]:
                c = beta1 * self.m[id(p)] + (1 - beta1) * p.grad
                p.copy_(p - self.lr * (torch.sign(c) + group["weight_decay"] * p))
                self.m[id(p)] = beta2 * self.m[id(p)] + (1 - beta2) * p.grad


Reference = Callable[[nn.Module], list[tuple[Any, float]]]  # optimizers with the ratio of their rate


def adafactor_of_transformers(model: nn.Module) -> Any:
    optimization = pytest.importorskip("transformers.optimization")
    return optimization.Adafactor(decayed(model), lr=1e-2, scale_parameter=False, relative_step=False)


def muon_and_adamw(model: nn.Module) -> list[tuple[Any, float]]:
    roles = split(model)
    theirs = pytest.importorskip("torch", "2.9").optim.Muon(
        roles["hidden"], weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
    )
    groups = [{"params": roles["table"], "weight_decay": DECAY}, {"params": roles["vector"], "weight_decay": 0.0}]
    return [(theirs, 1.0), (torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False), 0.5)]


def torchs(cls: Callable[..., Any], **keys: Any) -> Reference:
    """One of torch's own, in its plainest form."""
    return lambda model: [(cls(decayed(model), foreach=False, **keys), 1.0)]


ADAM = {"beta1": 0.8, "beta2": 0.99, "eps": 1e-4}
EPS = (1e-15, 1e-3)  # torch squares the first; ours is added to the square, theirs is its least value
REFERENCES: dict[str, list[tuple[dict[str, Any], Reference]]] = {
    "adamw": [
        ({}, torchs(torch.optim.AdamW, betas=(0.9, 0.95))),
        (ADAM, torchs(torch.optim.AdamW, betas=(0.8, 0.99), eps=1e-4)),
    ],
    "lion": [
        ({}, lambda model: [(FormulaLion(model, 0.9, 0.99), 1.0)]),
        ({"beta1": 0.5, "beta2": 0.6}, lambda model: [(FormulaLion(model, 0.5, 0.6), 1.0)]),
    ],
    "sgd": [
        ({}, torchs(torch.optim.SGD, momentum=0.9)),
        ({"nesterov": True, "momentum": 0.5}, torchs(torch.optim.SGD, momentum=0.5, nesterov=True)),
        ({"momentum": 0.0}, torchs(torch.optim.SGD)),
    ],
    "adafactor": [
        ({}, lambda model: [(adafactor_of_transformers(model), 1.0)]),
        ({"relative_step": True}, torchs(torch.optim.Adafactor, eps=EPS)),
        (
            {"relative_step": True, "clip_threshold": 2.0, "beta2_decay": -0.5},
            torchs(torch.optim.Adafactor, eps=EPS, d=2.0, beta2_decay=-0.5),
        ),
    ],
    "muon": [({"adamw_lr_ratio": 0.5}, muon_and_adamw)],
}
CASES = [(name, keys, make) for name in NAMES for keys, make in REFERENCES[name]]


@pytest.mark.parametrize(("name", "keys", "make"), CASES, ids=[f"{name}-{keys}" for name, keys, _ in CASES])
def test_it_equals_its_reference(
    name: str, keys: dict[str, Any], make: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "muon_class", lambda device: muon.Muon)  # in bf16, as torch's and as on a card
    ours, theirs = make_model(), make_model()
    optimizer = build_optimizer(ours, OptimizerConfig(name=name, weight_decay=DECAY, **keys), CPU)
    references = make(theirs)
    for step in range(STEPS):
        set_lr(optimizer, rate(step))
        for reference, ratio in references:
            if isinstance(reference, FormulaLion):
                reference.lr = rate(step)
            else:
                for group in reference.param_groups:
                    group["lr"] = ratio * rate(step)
        gradients(ours, step)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        for reference, _ in references:
            reference.step()
        optimizer.zero_grad(set_to_none=True)
    initial = make_model()
    for (parameter_name, p), q, start in zip(
        ours.named_parameters(), theirs.parameters(), initial.parameters(), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10, msg=parameter_name)
        assert not torch.equal(p, start), parameter_name


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (1, 5), (5, 1)])
@pytest.mark.parametrize("lr_adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize(("nesterov", "ns_steps"), [(True, 5), (False, 3)])
def test_our_muon_is_torchs_bit_for_bit(shape: tuple[int, int], lr_adjust: str, nesterov: bool, ns_steps: int) -> None:
    pytest.importorskip("torch", "2.9")
    keys = {"weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": lr_adjust}
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine, torchs = muon.Muon([{"params": [ours]}], lr=0.1, **keys), torch.optim.Muon([theirs], lr=0.1, **keys)
    for step in range(10):
        ours.grad = torch.sin(ours.detach() * (step + 1))
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
        assert torch.equal(ours, theirs), step


@pytest.mark.parametrize("has_muon", [True, False])
def test_ours_stands_in_where_torch_has_no_muon(monkeypatch: pytest.MonkeyPatch, has_muon: bool) -> None:
    monkeypatch.setattr(torch.optim, "Muon", "torch's", raising=False)
    if not has_muon:
        monkeypatch.delattr(torch.optim, "Muon")
    assert muon.muon_class(torch.device("cuda")) is ("torch's" if has_muon else muon.Muon)
    on_cpu = muon.muon_class(CPU)
    assert (on_cpu.func, on_cpu.keywords) == (muon.Muon, {"ns_dtype": torch.float32})


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_newton_schulz_in_fp32_is_the_papers_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vh = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = (u * values @ vh).float()
    torch.testing.assert_close(muon.orthogonalized(matrix, 5, torch.float32), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(muon.orthogonalized(matrix, 5).float(), expected, rtol=0.1, atol=0.05)


def test_newton_schulz_brings_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(muon.orthogonalized(torch.randn(64, 32), 5).float())
    assert 0.5 < values.min() <= values.max() < 1.5


def test_roles_are_told_by_modules_and_a_frozen_parameter_has_none() -> None:
    model = make_model()
    model.h[0].attn.c_attn.weight.requires_grad_(False)
    expected = {id(p): role for role, parameters in split(model).items() for p in parameters}
    found = {id(p): role for role, p in trainable_by_role(model)}
    assert found == {key: role for key, role in expected.items() if key != id(model.h[0].attn.c_attn.weight)}
    assert sum(role == "table" for role in found.values()) == 2  # the tied head once


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_on_matrices_only_and_each_parameter_is_moved_by_one_group(name: str) -> None:
    model = make_model()
    optimizer = build_optimizer(model, OptimizerConfig(name=name, weight_decay=0.3), CPU)
    grouped = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(id(p) for p, _ in grouped) == sorted(id(p) for p in model.parameters())
    assert all(group["weight_decay"] == (0.3 if p.dim() >= 2 else 0.0) for p, group in grouped)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_reaches_every_group_times_its_ratio(name: str) -> None:
    keys = {"adamw_lr_ratio": 0.25} if name == "muon" else {}
    optimizer = build_optimizer(make_model(), OptimizerConfig(name=name, lr=1.0, **keys), CPU)
    for lr in (0.5, 0.125):
        set_lr(optimizer, lr)
        ratios = [group["lr"] / lr for group in optimizer.param_groups]
        assert ratios == ([1.0, 0.25, 0.25] if name == "muon" else [1.0, 1.0])


VARIANTS = [*((name, {}) for name in NAMES), ("sgd", {"momentum": 0.0})]


@pytest.mark.parametrize(("name", "keys"), VARIANTS)
def test_state_is_what_the_spec_says_to_the_byte(name: str, keys: dict[str, Any]) -> None:
    model = make_model(torch.float32)
    config = OptimizerConfig(name=name, **keys)
    optimizer = build_optimizer(model, config, CPU)
    train(model, optimizer, 1)
    state = optimizer_state_by_name(model, optimizer)
    expected = {}
    for (parameter_name, p), (role, _) in zip(model.named_parameters(), trainable_by_role(model), strict=True):
        for key, shape in STATES[spec_of(name).state(config, role)](tuple(p.shape)).items():
            expected[f"{key}/{parameter_name}"] = shape
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected
    num_bytes = sum(tensor.nbytes for tensor in state.values() if tensor.dim())
    assert num_bytes == optimizer_state_bytes(config, MODEL.parameter_shapes())
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


@pytest.mark.parametrize("family", registry.MODELS)
def test_a_family_names_the_shape_and_role_of_all_its_parameters(family: str) -> None:
    config = registry.load(registry.MODELS[family].spec)(vocab_size=1000)
    with torch.device("meta"):
        model = registry.load(registry.MODELS[family].implementation)(config)
    real = sorted((role, tuple(p.shape)) for role, p in trainable_by_role(model))
    assert sorted((role, shape) for role, shape, copies in config.parameter_shapes() for _ in range(copies)) == real
    total = sum(math.prod(shape) * copies for _, shape, copies in config.parameter_shapes())
    assert total == config.n_allocated_params()


OWN_KEYS = [(name, key) for name in NAMES for key in spec_of(name).keys]
OTHER_VALUES = {
    "beta1": 0.5,
    "beta2": 0.5,
    "eps": 0.1,
    "momentum": 0.5,
    "ns_steps": 2,
    "lr_adjust": "original",
    "adamw_lr_ratio": 3.0,
    "beta2_decay": -0.3,
    "clip_threshold": 0.1,
}


@pytest.mark.parametrize(("name", "key"), [*OWN_KEYS, *((name, "weight_decay") for name in NAMES)])
def test_every_key_has_an_effect(name: str, key: str) -> None:
    default = OptimizerConfig(name=name)
    old = default.weight_decay if key == "weight_decay" else setting(default, key)
    other = 0.5 if key == "weight_decay" else not old if isinstance(old, bool) else OTHER_VALUES[key]
    assert other != old
    final = []
    for config in (
        default,
        msgspec.structs.replace(default, **{key: old}),
        msgspec.structs.replace(default, **{key: other}),
    ):
        model = make_model()
        train(model, build_optimizer(model, config, CPU), 3)
        final.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(final[0], final[1]), "the default is not what is used"
    assert not torch.equal(final[0], final[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_model_learns(name: str) -> None:
    model = make_model(torch.float32)
    lr = {"sgd": 0.1, "lion": 1e-3}.get(name, 1e-2)
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=lr), CPU)
    losses = []
    for _ in range(20):
        set_lr(optimizer, lr)
        losses.append(gradients(model, 0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(("name", "keys"), VARIANTS)
def test_state_comes_back_bit_for_bit(name: str, keys: dict[str, Any]) -> None:
    config = OptimizerConfig(name=name, **keys)
    straight = make_model(torch.float32)
    expected = train(straight, build_optimizer(straight, config, CPU), 8)
    first, second = make_model(torch.float32), make_model(torch.float32)
    optimizer = build_optimizer(first, config, CPU)
    losses = train(first, optimizer, 4)
    second.load_state_dict(first.state_dict())
    fresh = build_optimizer(second, config, CPU)
    load_optimizer_state_by_name(second, fresh, optimizer_state_by_name(first, optimizer))
    assert losses + train(second, fresh, 4, first=4) == expected


@pytest.mark.parametrize(("saved", "wanted"), list(itertools.permutations(NAMES, 2)))
def test_state_of_another_optimizer_is_refused(saved: str, wanted: str) -> None:
    model = make_model(torch.float32)
    optimizer = build_optimizer(model, OptimizerConfig(name=saved), CPU)
    train(model, optimizer, 1)
    other = build_optimizer(model, OptimizerConfig(name=wanted), CPU)
    with pytest.raises(CheckpointError, match="optimizer state"):
        load_optimizer_state_by_name(model, other, optimizer_state_by_name(model, optimizer))


def test_state_for_an_optimizer_without_any_is_refused() -> None:
    model = make_model(torch.float32)
    optimizer = build_optimizer(model, OptimizerConfig(name="sgd"), CPU)
    train(model, optimizer, 1)
    plain = build_optimizer(model, OptimizerConfig(name="sgd", momentum=0.0), CPU)
    with pytest.raises(CheckpointError, match="this optimizer keeps none"):
        load_optimizer_state_by_name(model, plain, optimizer_state_by_name(model, optimizer))


def test_a_factor_of_the_wrong_shape_is_refused() -> None:
    model = make_model(torch.float32)
    optimizer = build_optimizer(model, OptimizerConfig(name="adafactor"), CPU)
    train(model, optimizer, 1)
    state = dict(optimizer_state_by_name(model, optimizer))
    state["row_var/wpe.weight"] = state["row_var/wpe.weight"].T.contiguous()
    with pytest.raises(CheckpointError, match=r"'row_var' of 'wpe\.weight' is \(1, 16\)"):
        load_optimizer_state_by_name(model, optimizer, state)


@pytest.mark.parametrize("when", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_the_loss_scaler_skips_never_was(name: str, when: int) -> None:
    """fp16 gradients overflow now and then; nothing of that step may stay, at the very first step neither."""
    final = []
    for overflows in (True, False):
        model = make_model(torch.float32)
        optimizer = build_optimizer(model, OptimizerConfig(name=name), CPU)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
        for step in range(3):
            for is_lost in (True, False) if overflows and step == when else (False,):
                set_lr(optimizer, rate(step))
                idx = torch.randint(100, (4, 17), generator=torch.Generator().manual_seed(step))
                scaler.scale(model(idx[:, :-1], idx[:, 1:])).backward()
                if is_lost:
                    model.wpe.weight.grad[0, 0] = math.inf
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
        final.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*final)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_goes_on_as_if_nothing_had_been(local: LocalRuns, name: str) -> None:
    sets = {"optimizer.name": name, "optimizer.lr": 1e-3, "train.max_steps": 10, "eval.interval_steps": 0}
    if name == "muon":
        sets["optimizer.adamw_lr_ratio"] = 0.5
    straight = local.trained(f"straight-{name}", sets)
    broken = local.create(f"broken-{name}", sets)
    killed(local.open(broken), 9)  # the last checkpoint is of step 7
    assert local.attempt(broken) == 0
    assert local.losses(broken) == local.losses(straight)
    assert final_tensors(broken, 10) == final_tensors(straight, 10)
