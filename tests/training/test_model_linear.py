"""The CPU product that replaces torch's linear: values, gradients, strides, and where it must stay away."""

import pytest
import torch
from torch.nn import functional as F

from gpuworkbench.models import linear as module
from gpuworkbench.models.linear import Linear, linear, matmul

CALLS: list[tuple[int, ...]] = []


@pytest.fixture
def onednn(monkeypatch):
    """Takes the other path on any processor, at any size, and records its calls."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN linear")
    real = module._onednn
    CALLS.clear()
    monkeypatch.setattr(module, "_cpu_prefers_onednn", lambda: True)
    monkeypatch.setattr(module, "MIN_MULTIPLICATIONS", 1)
    monkeypatch.setattr(module, "_onednn", lambda x, *rest: (CALLS.append(tuple(x.shape)), real(x, *rest))[1])


def tensors(shape, out=19, bias=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).requires_grad_()
    weight = torch.randn(out, shape[-1], generator=generator).requires_grad_()
    return x, weight, torch.randn(out, generator=generator).requires_grad_() if bias else None


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", [(1, 7), (5, 7), (2, 3, 7), (2, 3, 4, 1), (33, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_torchs(shape, bias):
    inputs = [t for t in tensors(shape, bias=bias) if t is not None]
    grad = torch.randn(*shape[:-1], 19, generator=torch.Generator().manual_seed(1))
    expected = F.linear(*inputs)
    got = linear(*inputs)
    assert CALLS
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, inputs, grad)
    for a, b in zip(torch.autograd.grad(got, inputs, grad), wanted, strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("onednn")
def test_strided_inputs_and_gradients():
    x, weight, bias = tensors((6, 8))
    wide = torch.randn(8, 12, generator=torch.Generator().manual_seed(2))
    for view in (wide.t(), wide.t()[::2], wide.t().view(3, 4, 8)[:, 1]):
        torch.testing.assert_close(linear(view, weight, bias), F.linear(view, weight, bias), rtol=1e-5, atol=1e-5)
    grad = torch.randn(19, 6).t()
    wanted = torch.autograd.grad(F.linear(x, weight, bias), (x, weight, bias), grad)
    for a, b in zip(torch.autograd.grad(linear(x, weight, bias), (x, weight, bias), grad), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(matmul(grad.t(), x), grad.t() @ x, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("onednn")
def test_only_the_gradients_that_are_wanted_are_computed():
    x, weight, bias = tensors((5, 7))
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert CALLS == [(5, 7), (5, 19)]
    assert weight.grad is None


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("case", ["fp64", "bf16", "autocast", "empty"])
def test_where_it_stays_away(case):
    x, weight, bias = (t.detach() for t in tensors((5, 7)))
    if case == "fp64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    if case == "bf16":
        x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    if case == "empty":
        x = x[:0]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        got = linear(x, weight, bias)
        expected = F.linear(x, weight, bias)
    assert not CALLS
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.usefixtures("onednn")
def test_it_repeats_bit_for_bit():
    x, weight, bias = tensors((256, 96), out=384)
    first = torch.autograd.grad(linear(x, weight, bias).square().sum(), (x, weight, bias))
    second = torch.autograd.grad(linear(x, weight, bias).square().sum(), (x, weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_module_is_an_nn_linear():
    layer = Linear(4, 3)
    x = torch.randn(2, 4)
    assert isinstance(layer, torch.nn.Linear)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
