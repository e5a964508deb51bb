"""Which number format the matrix products use on a device, decided once and carried as a frozen value."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from gpuworkbench.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """A resolved `memory.precision`: the type of the products. What is stored has the type of `memory.weights`."""

    name: str  # fp32, bf16 or fp16
    autocast_dtype: torch.dtype | None  # None: no autocast
    needs_scaler: bool  # fp16 gradients underflow unless the loss is scaled up


FP32 = Precision("fp32", None, False)
BF16 = Precision("bf16", torch.bfloat16, False)
FP16 = Precision("fp16", torch.float16, True)
_BY_NAME = {precision.name: precision for precision in (FP32, BF16, FP16)}


def has_real_bf16(device: torch.device) -> bool:
    """Whether bf16 runs in hardware. torch also says yes to Turing (sm_75), which only emulates it, unless asked."""
    if device.type != "cuda":
        return True  # on a CPU bf16 is always computed correctly; how fast depends on its instructions
    with torch.cuda.device(device):
        try:
            return torch.cuda.is_bf16_supported(including_emulation=False)
        except TypeError:  # a torch without the argument
            return torch.cuda.get_device_capability(device) >= (8, 0)


def resolve_precision(
    requested: str, device: torch.device, *, key: str = "memory.precision", weights: str = "fp32"
) -> Precision:
    """`key` (auto, fp32, bf16, fp16) for `device`, with weights stored as memory.`weights`.

    auto is bf16 for bf16 weights and on a card that has it, fp16 on an older one, fp32 on a CPU. Raises ConfigError
    for an unknown name and for bf16 on a card without it.
    """
    if requested == "auto" and weights == "bf16":
        requested = "bf16"
    if requested == "auto":
        if device.type != "cuda":
            return FP32
        return BF16 if has_real_bf16(device) else FP16
    if requested not in _BY_NAME:
        raise ConfigError(f"{key} = {requested!r} is not known", f"choices: auto, {', '.join(sorted(_BY_NAME))}")
    if requested == "bf16" and not has_real_bf16(device):
        raise ConfigError(
            f"{key} = 'bf16': {torch.cuda.get_device_name(device)} has no bf16 in hardware",
            f"set {key} = 'fp16' or 'auto'",
        )
    return _BY_NAME[requested]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context that forward passes run in; does nothing for fp32."""
    if precision.autocast_dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision.autocast_dtype)
