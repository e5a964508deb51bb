"""Which precision is chosen on which device, and that each one really computes in it."""

import pytest
import torch

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.errors import ConfigError
from gpuworkbench.memory import precision as module
from gpuworkbench.memory.phase_precision import PHASES, PhasePrecision, PhaseScaler, grad_scaler
from gpuworkbench.memory.precision import BF16, FP16, FP32, Precision, autocast, resolve_precision
from gpuworkbench.models import build_model
from gpuworkbench.training.attempt import load_run_config
from gpuworkbench.training.loop import train
from gpuworkbench.units import format_bytes
from tests.fixtures.local_run import on_reaching

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """A stand-in for a card: the driver's answers, without one."""

    def make(has_bf16: bool, *, old_torch: bool = False, capability: tuple[int, int] = (7, 5)) -> None:
        class NoContext:
            def __init__(self, *_):
                pass

            def __enter__(self):
                return None

            def __exit__(self, *_):
                return None

        def supported(including_emulation=True):
            return True if including_emulation else has_bf16

        monkeypatch.setattr(torch.cuda, "device", NoContext)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", (lambda: True) if old_torch else supported)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Test Card")

    return make


@pytest.mark.parametrize(
    ("requested", "expected"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")]
)
def test_on_a_cpu(requested, expected):
    assert resolve_precision(requested, CPU).name == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_card(card, has_bf16, expected):
    card(has_bf16)
    assert resolve_precision("auto", CUDA).name == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_a_torch_that_cannot_tell_emulation_apart(card, capability, expected):
    card(True, old_torch=True, capability=capability)
    assert resolve_precision("auto", CUDA).name == expected


def test_bf16_on_a_card_without_it_is_refused(card):
    card(False)
    with pytest.raises(ConfigError, match="Test Card has no bf16") as caught:
        resolve_precision("bf16", CUDA)
    assert "fp16" in caught.value.hint


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"memory\.precision = 'fp8'"):
        resolve_precision("fp8", CPU)


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        module.FP32.name = "other"


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_run_in_the_named_type(name, dtype):
    with autocast(resolve_precision(name, CPU), CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_low_precision_gradients_are_near_fp32_ones(name):
    config = Gpt2Config(n_layer=2, n_head=2, n_embd=64, seq_len=16, vocab_size=100)
    model = build_model(config, seed=0)
    idx = torch.randint(100, (4, 16), generator=torch.Generator().manual_seed(0))
    model(idx, idx).backward()
    exact = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    precision = resolve_precision(name, CPU)
    scaler = grad_scaler(PhasePrecision(dict.fromkeys(PHASES, precision)), CPU)
    assert scaler.is_enabled() == (name == "fp16")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with autocast(precision, CPU):
        loss = model(idx, idx)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - exact[parameter_name]).norm() / exact[parameter_name].norm()
        assert error < 0.03, parameter_name


# A precision for each phase


def by_phase(**own: Precision) -> PhasePrecision:
    return PhasePrecision({**dict.fromkeys(PHASES, FP32), **own})


def test_switches_are_those_between_phases_of_different_precision():
    precisions = by_phase(predict=BF16)
    seen = []
    for phase in ("full", "full", "predict", "predict", "correct", "full", "predict"):
        precisions.enter_phase(phase, None)
        seen.append((precisions.current.name, precisions.switches))
    assert seen == [("fp32", 0)] * 2 + [("bf16", 1)] * 2 + [("fp32", 2)] * 2 + [("bf16", 3)]
    with precisions.of_validation():
        assert precisions.current == FP32
    assert (precisions.current, precisions.switches) == (BF16, 3)

    resumed = by_phase(predict=BF16)
    resumed.load(precisions.state())
    resumed.enter_phase("predict", None)
    assert (resumed.current, resumed.switches) == (BF16, 3)
    assert not by_phase().has_state


def test_the_scaler_rests_in_phases_without_fp16():
    """Against torch's own scaler that is used in the fp16 phase alone."""
    precisions = by_phase(full=FP16)
    ours, theirs = grad_scaler(precisions, CPU), torch.amp.GradScaler("cpu")
    assert isinstance(ours, PhaseScaler)
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights]
    for phase, factor in (("full", 2.0), ("predict", 3.0), ("full", float("inf")), ("correct", 1.0), ("full", 0.5)):
        precisions.enter_phase(phase, None)
        for scaler, weight, optimizer in zip((ours, theirs), weights, optimizers, strict=True):
            loss = (weight * factor).sum()
            if scaler is theirs and phase != "full":
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        assert torch.equal(*weights), phase
        assert ours.state_dict() == theirs.state_dict(), phase
    assert ours.get_scale() == 2.0**15


def test_phases_have_their_precision_in_a_run(local):
    sets = {
        "memory.precision_predict": "bf16",
        "train.max_steps": 6,
        "checkpoint.interval_steps": 2,
        "eval.interval_steps": 3,
    }
    run = local.open(local.create("by-phase", sets))
    types = []
    head = run.model.cross_entropy

    def noted(hidden, *rest):
        loss = head(hidden, *rest)
        types.append((run.model.training, torch.is_autocast_enabled("cpu")))
        return loss

    run.model.cross_entropy = noted
    on_reaching(run, 2, lambda: run.phases.change(2, "predict", "test", 2))
    on_reaching(run, 4, lambda: run.phases.change(4, "full", "test"))
    train(run)
    steps = local.events(run.paths, "step")
    assert [(event["precision"], event["precision_switches"]) for event in steps] == (
        [("fp32", 0)] * 2 + [("bf16", 1)] * 2 + [("fp32", 2)] * 2
    )
    assert {low for training, low in types if not training} == {False}, "validation is computed as in a full phase"
    assert [low for training, low in types if training] == [False] * 4 + [True] * 4 + [False] * 4
    reasons = [event["reason"] for event in local.events(run.paths, "phase_changed")]
    assert reasons == ["every step is a full step", "test; bf16", "test"]
    run.checkpointer.wait()
    run.events.close()


def test_each_phase_says_what_it_saves(card, local):
    config = load_run_config(local.create("words", {"memory.precision": "bf16", "memory.precision_correct": "fp32"}))[0]
    words = PhasePrecision.of(config, CPU).describe(config)
    tokens, model = config.train.micro_batch_size * config.train_seq_len, config.model
    saved = tokens * (model.saved_bytes_per_token(4) - model.saved_bytes_per_token(2)) - 2 * model.n_allocated_params()
    assert words["full"] == f"bf16, {format_bytes(saved)} less than fp32 (predicted)"
    assert (words["predict"], words["correct"]) == ("bf16", "fp32")
    card(False)
    with pytest.raises(ConfigError, match=r"memory\.precision_full = 'bf16'"):
        PhasePrecision.of(load_run_config(local.create("no-bf16", {"memory.precision_full": "bf16"}))[0], CUDA)


def test_auto_is_resolved_for_each_phase_at_launch(local):
    memory = load_run_config(local.create("auto", {"memory.precision_predict": "auto"}))[0].memory
    assert (memory.precision_predict, memory.precision_full) == ("fp32", None)
