"""The arithmetic peaks of cards, against figures that NVIDIA publishes in its whitepapers (TFLOP/s, dense)."""

from __future__ import annotations

import pytest

from gpuworkbench.gpu.peak import peak_flops


@pytest.mark.parametrize(
    ("name", "fp32", "half"),
    [
        ("NVIDIA GeForce RTX 2080 SUPER", 11.2, 44.6),
        ("NVIDIA GeForce RTX 3090", 35.6, 71.2),
        ("NVIDIA GeForce RTX 3080", 29.8, 59.5),
        ("NVIDIA GeForce RTX 4060 Ti", 22.1, 44.1),
        ("NVIDIA GeForce RTX 4090", 82.6, 165.2),
        ("NVIDIA GeForce RTX 5080", 56.3, 112.6),
        ("NVIDIA GeForce RTX 5090", 104.8, 209.5),
        ("NVIDIA A100-SXM4-80GB", 19.5, 312.0),
        ("NVIDIA H200", None, 989.4),
    ],
)
def test_peaks_are_the_published_ones(name: str, fp32: float | None, half: float) -> None:
    assert peak_flops(name, "fp16") == pytest.approx(half * 1e12, rel=0.005)
    if fp32 is not None:
        assert peak_flops(name, "fp32") == pytest.approx(fp32 * 1e12, rel=0.005)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (None, "bf16"),
        ("", "bf16"),
        ("NVIDIA GeForce RTX 2080 SUPER", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA GeForce RTX 4090", "fp8"),
        ("something else\x1b[31m", "fp32"),
    ],
)
def test_what_is_not_known_is_none(name: str | None, precision: str) -> None:
    assert peak_flops(name, precision) is None
