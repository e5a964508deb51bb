"""The installed torch build, asked for in a subprocess (importing torch takes seconds), and what it can run on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from gpuworkbench.text import safe_text

COMMAND = (sys.executable, "-m", "gpuworkbench.tools.doctor_torch")
TIMEOUT_S = 30.0
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]?)")


class TorchDevice(Struct, frozen=True, kw_only=True):
    """A CUDA device as torch sees it. `error`: why a small matrix product failed on it, None where it worked."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_total_bytes: int
    uuid: str | None = None
    is_bf16_supported: bool | None = None
    error: str | None = None


class TorchBuild(Struct, frozen=True, kw_only=True):
    """What `python -m gpuworkbench.tools.doctor_torch` prints."""

    version: str
    is_cuda_available: bool
    architectures: tuple[str, ...]
    devices: tuple[TorchDevice, ...]
    cuda_version: str | None = None
    hip_version: str | None = None
    cpu_capability: str | None = None
    threads: int | None = None
    warnings: tuple[str, ...] = ()


class TorchProbe:
    """The subprocess, started at once so that the other checks run beside it."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._problem = ""
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            self._problem = f"Python cannot be started: {error.strerror}"

    def kill(self) -> None:
        """End the subprocess where nobody waits for it any more; `result` then returns."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the subprocess and let go of its pipes; not while another thread is in `result`."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def result(self, timeout_s: float = TIMEOUT_S) -> TorchBuild | str:
        """The build, or in one line why it could not be asked. The subprocess is gone afterwards."""
        process = self._process
        if process is None:
            return self._problem
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"importing torch took longer than {timeout_s:.0f} s"
        if process.returncode != 0:
            last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
            return safe_text(last[0], max_chars=300) if last else f"it ended with exit code {process.returncode}"
        try:
            return msgspec.json.decode(output, type=TorchBuild)
        except ValueError as error:
            return safe_text(f"its answer is malformed: {error}", max_chars=300)


def architecture_supported(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether a build for `architectures` has code for a card of compute `capability`.

    `sm_86` runs on 8.6 and later 8.x; `compute_86` (PTX, compiled at load) on everything from 8.6 on; a letter
    (`sm_90a`) ties code to exactly that architecture, `f` (`sm_100f`) to its family from there on.
    CUDA C++ programming guide, "Binary compatibility" and "Family-specific features".
    """
    for architecture in architectures:
        match = _ARCHITECTURE.fullmatch(architecture)
        if not match:
            continue
        kind, built, suffix = match[1], (int(match[2]), int(match[3])), match[4]
        if suffix == "a":
            works = capability == built
        elif kind == "compute" and not suffix:
            works = capability >= built
        else:
            works = capability[0] == built[0] and capability[1] >= built[1]
        if works:
            return True
    return False
