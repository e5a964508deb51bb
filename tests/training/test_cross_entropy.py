"""Chunked head and cross-entropy equals the plain one: values, gradients, precisions, padding, unscored rows."""

import pytest
import torch
from torch.nn import functional as F

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.memory.chunked_cross_entropy import ChunkedCrossEntropy
from gpuworkbench.models import build_model
from gpuworkbench.models.head import plain_cross_entropy

ROWS, C, V, V_PADDED = 23, 8, 50, 64


def inputs(dtype=torch.float32, v_padded=V_PADDED, unscored=0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, C, generator=generator, dtype=torch.float64)
    weight = torch.randn(v_padded, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (ROWS,), generator=generator)
    targets[:unscored] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("unscored", [0, 9])
def test_plain_equals_torch_on_the_exact_vocabulary(unscored):
    hidden, weight, targets = inputs(torch.float64, unscored=unscored)
    expected = F.cross_entropy(hidden @ weight[:V].t(), targets)
    torch.testing.assert_close(plain_cross_entropy(hidden, weight, targets, V), expected)


@pytest.mark.parametrize("chunk_rows", [1, 4, 22, 23, 1000])
@pytest.mark.parametrize("v_padded", [V, V_PADDED])
@pytest.mark.parametrize("unscored", [0, 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_loss_and_gradients_equal_the_unchunked(chunk_rows, v_padded, unscored, dtype, tolerance):
    hidden, weight, targets = inputs(dtype, v_padded, unscored)
    expected = F.cross_entropy(hidden @ weight[:V].t(), targets)
    expected_grads = gradients(expected * 3.5, hidden, weight)
    loss = ChunkedCrossEntropy(chunk_rows)(hidden, weight, targets, V)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for got, wanted in zip(gradients(loss * 3.5, hidden, weight), expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert (
        torch.count_nonzero(gradients(ChunkedCrossEntropy(chunk_rows)(hidden, weight, targets, V), weight)[0][V:]) == 0
    )


@pytest.mark.parametrize("chunk_rows", [5, 23])
def test_gradients_equal_central_differences(chunk_rows):
    """Against numbers, not against autograd. (torch's gradcheck runs backward twice on one graph: refused here.)"""
    hidden, weight, targets = inputs(torch.float64, unscored=2)
    loss_of = ChunkedCrossEntropy(chunk_rows)
    grads = gradients(loss_of(hidden, weight, targets, V), hidden, weight)
    generator = torch.Generator().manual_seed(1)
    h = 1e-5
    for _ in range(20):
        directions = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (hidden, weight)]
        with torch.no_grad():
            above, below = (
                loss_of(hidden + s * directions[0], weight + s * directions[1], targets, V) for s in (h, -h)
            )
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        torch.testing.assert_close((above - below) / (2 * h), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_rows", [6, 64])
@pytest.mark.parametrize("loss_scale", [1.0, 65536.0])
def test_under_autocast_it_is_as_near_to_fp64_as_the_plain_one(dtype, chunk_rows, loss_scale):
    exact = inputs(torch.float64)
    exact_loss = plain_cross_entropy(*exact, V)
    exact_grads = gradients(exact_loss * loss_scale, *exact[:2])
    errors = {}
    for name, loss_of in (("plain", plain_cross_entropy), ("chunked", ChunkedCrossEntropy(chunk_rows))):
        hidden, weight, targets = inputs(torch.float32)
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(hidden, weight, targets, V)
        assert loss.dtype == torch.float32
        grads = gradients(loss * loss_scale, hidden, weight)
        assert [g.dtype for g in grads] == [torch.float32, torch.float32]
        errors[name] = [abs(loss.item() - exact_loss.item())]
        errors[name] += [((g - e).norm() / e.norm()).item() for g, e in zip(grads, exact_grads, strict=True)]
    for plain, chunked in zip(errors["plain"], errors["chunked"], strict=True):
        assert chunked <= 2 * plain + 1e-3
        assert chunked < 0.02


def test_fp16_keeps_gradients_that_a_division_by_the_rows_would_lose():
    """4,096 rows and flat probabilities: softmax / rows is 1e-7, next to fp16's smallest number of 6e-8."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, 4, generator=generator).requires_grad_()
    weight = (0.01 * torch.randn(2048, 4, generator=generator)).requires_grad_()
    targets = torch.zeros(4096, dtype=torch.int64)
    exact = gradients(plain_cross_entropy(hidden, weight, targets, 2048), weight)[0]
    with torch.autocast("cpu", dtype=torch.float16):
        loss = ChunkedCrossEntropy(2048)(hidden, weight, targets, 2048)
    got = gradients(loss, weight)[0]
    assert ((got - exact)[1:].norm() / exact[1:].norm()) < 0.02


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient_and_the_other_is_unchanged(frozen):
    hidden, weight, targets = inputs()
    both = gradients(ChunkedCrossEntropy(5)(hidden, weight, targets, V), hidden, weight)
    tensors = [hidden, weight]
    tensors[frozen].requires_grad_(False)
    other = 1 - frozen
    got = gradients(ChunkedCrossEntropy(5)(hidden, weight, targets, V), tensors[other])[0]
    torch.testing.assert_close(got, both[other])


def test_without_gradients_none_are_computed(monkeypatch):
    hidden, weight, targets = inputs()
    expected = plain_cross_entropy(hidden, weight, targets, V)
    monkeypatch.setattr("gpuworkbench.memory.chunked_cross_entropy._logits_grad", lambda *_: pytest.fail("computed"))
    with torch.no_grad():
        loss = ChunkedCrossEntropy(5)(hidden, weight, targets, V)
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


def test_a_second_backward_is_refused_rather_than_wrong():
    hidden, weight, targets = inputs()
    loss = ChunkedCrossEntropy(5)(hidden, weight, targets, V)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs once"):
        loss.backward()


def test_the_logits_never_exist_as_a_whole(monkeypatch):
    sizes = []
    real = F.log_softmax
    monkeypatch.setattr(F, "log_softmax", lambda x, **k: (sizes.append(x.shape[0]), real(x, **k))[1])
    hidden, weight, targets = inputs()
    ChunkedCrossEntropy(10)(hidden, weight, targets, V)
    assert sizes == [10, 10, 3]


@pytest.mark.parametrize("chunk_rows", [0, -1])
def test_a_chunk_has_rows(chunk_rows):
    with pytest.raises(ValueError, match="at least one row"):
        ChunkedCrossEntropy(chunk_rows)


def test_a_model_trains_the_same_with_it():
    config = Gpt2Config(n_layer=2, n_head=2, n_embd=32, seq_len=16, vocab_size=100)
    idx = torch.randint(100, (4, 17), generator=torch.Generator().manual_seed(0))
    plain, chunked = build_model(config, seed=0), build_model(config, seed=0)
    ChunkedCrossEntropy(10).apply(chunked)
    assert chunked.cross_entropy is not plain.cross_entropy
    for model in (plain, chunked):
        for accumulated in (idx, idx.flip(0)):
            (model(accumulated[:, :-1], accumulated[:, 1:]) / 2).backward()
    for (name, p), q in zip(plain.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-7, msg=name)
