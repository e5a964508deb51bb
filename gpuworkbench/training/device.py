"""The compute device of a trainer: threads, determinism, the allocator's cap."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError
from gpuworkbench.training.host_allocator import keep_freed_memory
from gpuworkbench.units import GIB

CONTEXT_BYTES = 512 * 1024 * 1024  # the CUDA context lives outside the allocator; a simulated card has one too


class Device(NamedTuple):
    """Where the run computes, as `run_started` reports it."""

    torch_device: torch.device
    card: str | None
    simulated_card: str | None
    limit_bytes: int | None


def set_up_device(config: RunConfig) -> Device:
    """Apply threads, determinism and the memory cap; returns the device. Raises DoesNotFitError, ConfigError."""
    torch.set_num_threads(config.train.threads or os.cpu_count() or 1)
    exact = config.train.mode == "exact"
    if exact:
        # Needed by deterministic cuBLAS; read when the first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(exact)
    # Otherwise every torch.empty is filled with NaN in that mode: a pass over memory that nothing here reads unset.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not exact
    if config.device.kind == "cpu":
        keep_freed_memory()
        return Device(torch.device("cpu"), None, None, None)
    return _set_up_cuda(config)


def _set_up_cuda(config: RunConfig) -> Device:
    if not torch.cuda.is_available():
        raise DoesNotFitError(
            "this torch build sees no CUDA device", "`gpuworkbench doctor` says why; or use --cpu-twin"
        )
    index = _index_of(config)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = config.train.mode == "fast"
    torch.backends.cudnn.allow_tf32 = config.train.mode == "fast"
    properties = torch.cuda.get_device_properties(device)
    total = properties.total_memory
    limit_gib = config.device.memory_limit_gib
    if limit_gib is None:
        return Device(device, properties.name, None, total)
    limit = round(limit_gib * GIB)
    if limit > total:
        raise ConfigError(
            f"device.memory_limit_gib = {limit_gib}: the card has {total / GIB:.1f} GiB", "give a smaller limit"
        )
    torch.cuda.set_per_process_memory_fraction(max(limit - CONTEXT_BYTES, 1) / total, device)
    return Device(device, properties.name, config.simulated_card, limit)


def _index_of(config: RunConfig) -> int:
    """The CUDA index of the stored UUID, else device.index, else 0."""
    wanted = config.device.uuid
    if wanted is not None:
        for index in range(torch.cuda.device_count()):
            uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
            if uuid and wanted.removeprefix("GPU-") == uuid.removeprefix("GPU-"):
                return index
    index = config.device.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device.index = {index}: torch sees {torch.cuda.device_count()} CUDA device(s)")
    return index
