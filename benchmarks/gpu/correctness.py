"""Environment, and whether a card computes what a CPU does."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks._record import environment as host_environment
from benchmarks.gpu.common import Place
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.memory.precision import has_real_bf16
from gpuworkbench.models import build_model

# Largest difference of logits, as a share of the largest logit: rounding of the format over 12 layers.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.06, "fp16": 0.01}
LOSS_TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3}


def environment(place: Place) -> dict[str, Any]:
    """What this is measured on."""
    record: dict[str, Any] = {
        **host_environment("torch", "numpy", "triton", "safetensors", "msgspec"),
        "revision": _revision(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "is_cuda_available": torch.cuda.is_available(),
        "card": None,
        "driver": None,
    }
    if not place.is_cuda or not torch.cuda.is_available():
        return {**record, "headline": f"CPU, torch {record['packages']['torch']}"}
    properties = torch.cuda.get_device_properties(0)
    nvml = next(iter(probe_cards()), None)
    record |= {
        "card": properties.name,
        "compute_capability": [properties.major, properties.minor],
        "memory_total_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "driver": None if nvml is None else nvml.driver_version,
        "power_limit_w": None if nvml is None else nvml.power_limit_w,
        "pcie": None if nvml is None else [nvml.pcie_generation, nvml.pcie_width],
        "nvidia_ml_py": _version("nvidia-ml-py"),
        "has_bf16": has_real_bf16(torch.device("cuda", 0)),
    }
    return {**record, "headline": f"{properties.name}, torch {torch.__version__}, CUDA {torch.version.cuda}"}


def correctness(place: Place) -> dict[str, Any]:
    """GPT-2 124M (small: two layers): logits, loss and gradient norm on the device against fp32 on the CPU."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64, "seq_len": 64, "vocab_size": 512} if place.is_small else {}
    config = Gpt2Config(**{"vocab_size": 50_257, **sizes})
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(config.vocab_size, (2, min(config.seq_len, 128) + 1), generator=generator)
    model = build_model(config, seed=1)
    reference = _outputs(model, ids, None)
    device = torch.device("cuda", 0) if place.is_cuda else torch.device("cpu")
    model.to(device)
    ids = ids.to(device)
    result: dict[str, Any] = {"reference_loss": reference["loss"], "formats": {}}
    with _exact_products():
        for name, dtype in (("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
            if (name == "bf16" and not has_real_bf16(device)) or (name == "fp16" and not place.is_cuda):
                continue
            ours = _outputs(model, ids, dtype)
            result["formats"][name] = _compared(name, ours, reference)
            place.note(result)
    failed = [name for name, found in result["formats"].items() if not found["ok"]]
    if failed:
        raise AssertionError(f"{', '.join(failed)} differ from fp32 on the CPU: {result['formats']}")
    worst = {name: found["logits_difference"] for name, found in result["formats"].items()}
    return {**result, "headline": "logits differ by " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items())}


def _outputs(model: Any, ids: torch.Tensor, dtype: torch.dtype | None) -> dict[str, Any]:
    """Logits (N, V) of the trained positions, loss and gradient norm; on the CPU for the comparison."""
    x, y = ids[:, :-1], ids[:, 1:].contiguous()
    model.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        loss = model(x, y)
        logits = model(x)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {"loss": float(loss), "logits": logits.detach().float().cpu(), "grad_norm": float(norm)}


def _compared(name: str, ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    difference = (ours["logits"] - reference["logits"]).abs().max() / reference["logits"].abs().max()
    of_loss = abs(ours["loss"] - reference["loss"])
    of_norm = abs(ours["grad_norm"] / reference["grad_norm"] - 1)
    is_right = float(difference) <= TOLERANCES[name] and of_loss <= LOSS_TOLERANCES[name] * reference["loss"]
    return {
        "logits_difference": float(difference),
        "loss_difference": of_loss,
        "grad_norm_difference": of_norm,
        "ok": bool(is_right),
    }


@contextmanager
def _exact_products() -> Iterator[None]:
    """fp32 products in fp32, not TF32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def _revision() -> str | None:
    """The commit that is measured, with a mark where files were changed since; None where git does not know."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
