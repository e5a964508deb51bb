"""The probe tier of the planner: `python -m gpuworkbench.tools.probe KIND < run.toml`, one JSON object on stdout.

Two real optimizer steps on the run's device. On a card the allocator's peak is read, and what the process holds beside
it (the context); on a CPU torch's profiler counts the bytes of all tensors. Running out of memory is exit code 4.
"""

from __future__ import annotations

import resource
import sys
import time

import msgspec
import torch

from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import parse_toml
from gpuworkbench.errors import ExitCode, WorkbenchError
from gpuworkbench.memory.tensor_bytes import TensorBytes
from gpuworkbench.plan.analytic import heaviest_phase
from gpuworkbench.plan.phase_widths import precision_of
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.tools.step_rig import StepRig
from gpuworkbench.training.device import set_up_device
from gpuworkbench.training.memory_errors import first_line, is_out_of_memory

STEPS = 2


class Probed(msgspec.Struct, frozen=True):
    """Bytes of tensors at the peak of the steps, seconds of the last one; the rest as far as it is known."""

    peak_bytes: int
    step_time_s: float
    context_bytes: int | None = None
    host_rss_bytes: int | None = None
    torch: str = ""


def probe(config: RunConfig, kind: str) -> Probed:
    """Two steps of `config`, its vocabulary known, in the precision of the phase whose steps take most.

    Raises torch.OutOfMemoryError, MemoryError, WorkbenchErrors.
    """
    replace = msgspec.structs.replace
    config = replace(
        config,
        device=replace(config.device, kind=kind),
        train=replace(config.train, init_from="", mode=config.train.mode or ("exact" if kind == "cpu" else "fast")),
    )
    device = set_up_device(config).torch_device
    return _on_card(config, device) if kind == "cuda" else _on_cpu(config, device)


def _on_card(config: RunConfig, device: torch.device) -> Probed:
    step_time_s = _steps(config, device)
    free, total = torch.cuda.mem_get_info(device)
    beside = max(total - free - torch.cuda.memory_reserved(device), 0)  # other programs' too
    return Probed(torch.cuda.max_memory_allocated(device), step_time_s, beside, _peak_rss(), str(torch.__version__))


def _on_cpu(config: RunConfig, device: torch.device) -> Probed:
    with TensorBytes() as recording:
        step_time_s = _steps(config, device)
    return Probed(max(recording.peaks().values()), step_time_s, None, _peak_rss(), str(torch.__version__))


def _steps(config: RunConfig, device: torch.device) -> float:
    """Seconds of the last step."""
    rig = StepRig(config, device, precision_of(config, heaviest_phase(config, device.type)))
    started = 0.0
    for _ in range(STEPS):
        started = _now(device)
        rig.step()
    return _now(device) - started


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> int:
    """Probe the configuration on stdin; returns the exit code."""
    try:
        config = with_known_vocabulary(build(parse_toml(sys.stdin.buffer.read(), "stdin"), "stdin"))
        if config is None:
            raise WorkbenchError("the vocabulary is unknown", "set model.vocab_size")
        answer = probe(config, arguments[0] if arguments else "cpu")
    except WorkbenchError as error:
        print(f"gpuworkbench: {error.line()}", file=sys.stderr)
        return error.exit_code
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"gpuworkbench: out of memory: {first_line(error)}", file=sys.stderr)
        return ExitCode.DOES_NOT_FIT
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
