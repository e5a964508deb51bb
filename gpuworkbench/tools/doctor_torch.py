"""The doctor's torch half: what the installed build can do on this machine, as one JSON object on stdout.

Run as `python -m gpuworkbench.tools.doctor_torch`; `gpuworkbench/gpu/doctor.py` starts it and judges the answer.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import msgspec
import torch


def describe_build() -> dict[str, Any]:
    """The build: version, CUDA version, architectures it was compiled for, devices, CPU capability."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch warns here about cards that the build has no kernels for
        is_available = torch.cuda.is_available()
        devices = [describe_device(index) for index in range(torch.cuda.device_count())] if is_available else []
    return {
        "version": str(torch.__version__),
        "cuda_version": torch.version.cuda,
        "hip_version": torch.version.hip,
        "is_cuda_available": is_available,
        "architectures": torch.cuda.get_arch_list() if is_available else [],
        "devices": devices,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "warnings": [str(warning.message) for warning in caught],
    }


def describe_device(index: int) -> dict[str, Any]:
    """One device, with the result of a real matrix product on it: a build without its kernels fails here."""
    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    device: dict[str, Any] = {
        "index": index,
        "name": properties.name,
        "uuid": None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}",
        "compute_capability": [properties.major, properties.minor],
        "memory_total_bytes": properties.total_memory,
        "is_bf16_supported": None,
        "error": None,
    }
    try:
        with torch.cuda.device(index):
            device["is_bf16_supported"] = torch.cuda.is_bf16_supported(including_emulation=False)
            ones = torch.ones(16, 16, device=f"cuda:{index}")
            if (ones @ ones).sum().item() != 4096.0:
                device["error"] = "a matrix product came out wrong"
    except (RuntimeError, AssertionError) as error:
        device["error"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return device


def main() -> int:
    """Print the description; exit 0."""
    sys.stdout.buffer.write(msgspec.json.encode(describe_build()) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
