"""Matrix products with a weight, by the faster of torch's two CPU libraries.

torch multiplies fp32 matrices on a CPU with MKL, which uses half of the vector width of an AMD processor with AVX-512.
oneDNN, which torch also contains, uses all of it: a step of GPT-2 small is about 1.5 times as fast (best rounds of
"ours" against "ours, torch's own products" in benchmarks/results/step_time_gpt2_small.json, on an AMD EPYC).
Everywhere else, and for every other type, this is torch's own linear.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MIN_MULTIPLICATIONS = 2**20  # below, the call costs more than the product


class Linear(nn.Linear):
    """nn.Linear through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (out, in) transposed, plus bias (out,)."""
    if _onednn_is_better(x, weight):
        return _OneDnnLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """(N, K) times (K, M), without gradients."""
    return _onednn(a, b.t()) if _onednn_is_better(a, b.t()) else a @ b


def _onednn_is_better(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= MIN_MULTIPLICATIONS
        and x.shape[-1] > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _cpu_prefers_onednn()
    )


@cache
def _cpu_prefers_onednn() -> bool:
    """An AMD processor with AVX-512, and a torch that has the operator (the one that torch.compile uses on CPUs)."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "AuthenticAMD" in file.read(4096)
    except OSError:
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = _onednn(rows, weight.t()).view_as(x) if needs_x else None
        grad_weight = _onednn(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs_weight else None
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None
