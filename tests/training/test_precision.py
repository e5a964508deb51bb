"""Which precision is chosen on which device, and that each one really computes in it."""

import pytest
import torch

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.errors import ConfigError
from gpuworkbench.memory import precision as module
from gpuworkbench.memory.precision import autocast, grad_scaler, resolve_precision
from gpuworkbench.models import build_model

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
    scaler = grad_scaler(precision, CPU)
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
