"""24 bits, 16 bits and bytes with scales: errors against closed forms, random rounding against its expectation."""

import numpy as np
import pytest
import torch

from gpuworkbench.memory.bits import join, round_to_bf16, split
from gpuworkbench.memory.moments import decode_m, decode_v, encode_m, encode_v
from gpuworkbench.memory.noise import generator, mix, random_bits
from gpuworkbench.memory.pieces import num_blocks, pieces

CPU = torch.device("cpu")
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-126, 1e-40, 1.0 + 2**-7, 3.0e38, 255.0, -0.9999999])


def spread(n, seed=0):
    """Values over 30 orders of magnitude, both signs."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=source) * 10 ** (30 * torch.rand(n, generator=source) - 15)


def test_a_weight_and_its_residual_hold_sixteen_significant_bits():
    value = torch.cat([spread(200_000), SPECIAL])
    weight, residual = split(value)
    found = join(weight, residual)
    assert (weight.dtype, residual.dtype, found.dtype) == (torch.bfloat16, torch.int8, torch.float32)
    normal = value.abs() >= 2.0**-126
    assert ((found - value).abs() <= 2.0**-16 * value.abs())[normal].all()
    # numpy's own view of the bits: rounded to nearest, ties away from zero, at the 16th significant bit
    bits = value.numpy().view(np.uint32)
    expected = (((bits.astype(np.uint64) + 0x80) >> 8) << 8).astype(np.uint32).view(np.float32)
    assert np.array_equal(found.numpy(), expected)


def test_the_weight_is_the_value_rounded_to_bf16():
    value = join(*split(spread(100_000)))
    weight, _ = split(value)
    step = torch.exp2(torch.floor(torch.log2(value.abs().double())) - 7)
    assert ((weight.double() - value.double()).abs() <= step / 2).all()
    ties = ((weight.double() - value.double()).abs() == step / 2).float().mean()
    assert (weight == value.to(torch.bfloat16)).float().mean() >= 1 - ties


def test_splitting_again_changes_nothing():
    weight, residual = split(spread(10_000))
    again = split(join(weight, residual))
    assert torch.equal(again[0], weight)
    assert torch.equal(again[1], residual)


def test_what_is_no_number_stays_none():
    odd = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf")])
    weight, residual = split(odd, torch.full((4,), 255, dtype=torch.int32))
    for found in (weight.float(), join(weight, residual), round_to_bf16(odd, torch.full((4,), 65_535)).float()):
        assert found[:2].isnan().all()
        assert torch.equal(found[2:], odd[2:])


@pytest.mark.parametrize("value", [1.0 + 2**-18, -(1.0 + 2**-20), 0.1, 1e-8, 3.3333e5])
def test_random_rounding_is_right_on_average(value):
    n = 1 << 18
    whole = torch.full((n,), value)
    noise = random_bits(whole, generator(CPU, 1, 2, 3))
    fine = join(*split(whole, noise & 0xFF)).double()
    coarse = round_to_bf16(whole, noise & 0xFFFF).double()
    exact = whole[0].double()
    exponent = np.floor(np.log2(abs(value)))
    for found, step in ((fine, 2.0 ** (exponent - 15)), (coarse, 2.0 ** (exponent - 7))):
        assert found.unique().numel() <= 2
        assert ((found - exact).abs() < step).all()
        assert abs(found.mean() - exact) < 5 * step / 2 / n**0.5 + 1e-3 * step / 256


def blocks(n=64, width=256, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=source) * 10 ** (4 * torch.rand(n, width, generator=source) - 6)


def test_m_comes_back_within_its_step():
    m = blocks()
    codes, scale = encode_m(m.clone(), 0.5)
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert torch.equal(scale, m.abs().amax(1, keepdim=True))
    y = (m.abs() / scale).sqrt().double()
    error = (decode_m(codes, scale).double() - m).abs()
    half = 1 / 254  # (y + h)^2 - y^2 with |h| at most half a step
    assert (error <= scale * (2 * y * half + half**2) * (1 + 1e-4)).all()
    assert torch.equal(decode_m(codes, scale).sign()[codes != 0], m.sign()[codes != 0])


def test_v_comes_back_within_its_step_and_never_as_zero():
    v = blocks().square()
    codes, scale = encode_v(v.clone(), 0.5)
    assert (codes.dtype, scale.dtype, int(codes.min()) >= 1) == (torch.uint8, torch.float32, True)
    y = (v / scale).double() ** 0.25
    found = (decode_v(codes, scale) / scale).double() ** 0.25
    held = y >= 1 / 255  # what is smaller is held up at code 1
    assert ((found - y).abs() <= (1 / 510) * (1 + 1e-4))[held].all()
    assert torch.allclose(found[~held], torch.tensor(1 / 255, dtype=torch.float64))
    assert (decode_v(codes, scale) > 0).all()


def test_moments_of_zero_are_zero():
    zeros = torch.zeros(2, 256)
    assert not decode_m(*encode_m(zeros.clone(), 0.5)).any()
    assert not decode_v(*encode_v(zeros.clone(), 0.999)).any()


def test_codes_are_right_on_average():
    n = 4000
    m = torch.tensor([[1.0, 0.01, -0.3, 3e-4]]).repeat(n, 1)
    noise = torch.rand(n, 4, generator=torch.Generator().manual_seed(1))
    codes, _ = encode_m(m.clone(), noise)
    y = m[0].sign() * m[0].abs().sqrt() * 127
    assert ((codes.float().mean(0) - y).abs() < 5 * 0.5 / n**0.5).all()
    codes, _ = encode_v(m.square(), noise)
    assert ((codes.float().mean(0) - m[0].abs().sqrt() * 255).abs() < 5 * 0.5 / n**0.5).all()


def test_a_tiny_moment_cannot_make_a_huge_step():
    """|m| / sqrt(v) of what is stored, where both were rounded at their worst: the smallest m up, v down to code 1."""
    m, v = torch.tensor([[1.0, 1e-9]]), torch.tensor([[1.0, 1e-18]])
    stored_m = decode_m(*encode_m(m.clone(), 0.999999))[0, 1]
    stored_v = decode_v(*encode_v(v.clone(), 0.0))[0, 1]
    assert stored_m / stored_v.sqrt() == pytest.approx((255 / 127) ** 2, rel=1e-4)


@pytest.mark.parametrize("numel", [1, 255, 256, 257, 1000, 70_000])
def test_pieces_cover_everything_once(numel):
    seen = torch.zeros(numel)
    scales = torch.zeros(num_blocks(numel))
    for piece in pieces(numel, most=8192):
        assert piece.rows * piece.width <= 8192
        piece.of(seen).add_(1)
        piece.scales_of(scales).add_(1)
    assert seen.eq(1).all()
    assert scales.eq(1).all()


def test_noise_is_a_function_of_seed_step_and_parameter():
    like = torch.empty(1000)
    first = random_bits(like, generator(CPU, 1, 2, 3))
    assert torch.equal(first, random_bits(like, generator(CPU, 1, 2, 3)))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(first, random_bits(like, generator(CPU, *other)))
    assert len({mix(a, b, c) for a in range(10) for b in range(10) for c in range(10)}) == 1000
    for bit in range(31):
        assert 400 < int((first >> bit & 1).sum()) < 600
