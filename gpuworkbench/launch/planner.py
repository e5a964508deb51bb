"""The tiers of the planner that need torch: a step traced, or two real ones, in a subprocess."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.errors import DoesNotFitError, ExitCode, WorkbenchError
from gpuworkbench.launch.spawn import torch_command, trainer_environment
from gpuworkbench.plan.analytic import CUDA_CONTEXT_BYTES, GEMM_WORKSPACE_BYTES, PARTS, Estimate
from gpuworkbench.plan.probes import Probe, probe_path, read_probe
from gpuworkbench.plan.remembered import write
from gpuworkbench.plan.targets import Target
from gpuworkbench.text import safe_text

TRACE_TIMEOUT_S = 600.0
PROBE_TIMEOUT_S = 600.0


class TraceAnswer(Struct, frozen=True):
    """What the tracer prints."""

    total_bytes: int
    parts: dict[str, int]
    seconds: float


class ProbeAnswer(Struct, frozen=True):
    """What the probe prints: bytes of tensors at the peak of its steps; on a card what lies beside its allocator's."""

    peak_bytes: int
    step_time_s: float
    context_bytes: int | None = None
    host_rss_bytes: int | None = None
    driver: str | None = None
    torch: str = ""


def traced(config: RunConfig, predicted: Estimate, target: Target) -> Estimate:
    """`predicted` with the bytes of a traced step where the run computes. Raises WorkbenchError."""
    answer = _ask("trace", config, target.kind, TRACE_TIMEOUT_S, TraceAnswer)
    return with_measured(predicted, target.kind, answer.total_bytes, answer.parts, beside=True)


def probed(config: RunConfig, predicted: Estimate, target: Target, say: Callable[[str], None]) -> Estimate:
    """`predicted` with what two real steps took, asked for once per device, versions and configuration.

    Raises DoesNotFitError where they ran out of memory, WorkbenchError where they failed, or no such card is here.
    """
    if target.kind == "cuda" and target.card is None:
        raise DoesNotFitError(
            "a probe needs the card, and it is not here",
            "probe where it is, without --card SIZE; here use --tier trace, or --cpu-twin for a preset's stand-in",
        )
    path = probe_path(config, target)
    known = read_probe(path)
    if known is None:
        say("probing: two real steps")
        answer = _ask("probe", config, target.kind, PROBE_TIMEOUT_S, ProbeAnswer)
        known = _remember(path, answer)
    parts = {"measured tensors": known.peak_bytes}
    context = known.context_bytes if target.kind == "cuda" else 0
    return with_measured(predicted, target.kind, known.peak_bytes, parts, beside=False, context_bytes=context)


def with_measured(
    predicted: Estimate,
    kind: str,
    total_bytes: int,
    parts: dict[str, int],
    *,
    beside: bool,
    context_bytes: int | None = None,
) -> Estimate:
    """The estimate with other bytes of tensors, and around them what neither a trace nor an allocator sees.

    What a prediction keeps is in neither, since the step is a true one. `beside`: the scratch of the products too.
    """
    is_cuda = kind == "cuda"
    found = {name: parts[name] for name in PARTS if parts.get(name)}
    found |= {name: size for name, size in parts.items() if name not in PARTS and size}
    found["predictor, undo"] = predicted.parts["predictor, undo"]
    if beside:
        found["workspace"] = GEMM_WORKSPACE_BYTES if is_cuda else 0
    context = CUDA_CONTEXT_BYTES if context_bytes is None else context_bytes
    found["CUDA context"] = context if is_cuda else 0
    total = sum(found.values())
    assert total_bytes <= total
    host = predicted.host_bytes + (0 if is_cuda else total - predicted.total_bytes)
    return msgspec.structs.replace(
        predicted, parts=found, total_bytes=total, host_bytes=host, moment="step", moments={"step": total}
    )


def _remember(path: Path, answer: ProbeAnswer) -> Probe:
    probe = Probe(
        peak_bytes=answer.peak_bytes,
        step_time_s=answer.step_time_s,
        context_bytes=answer.context_bytes,
        host_rss_bytes=answer.host_rss_bytes,
    )
    write(path, probe)
    return probe


def _ask(name: str, config: RunConfig, kind: str, timeout_s: float, answer: type[Any]) -> Any:
    """What tool `name` answers to the configuration on its stdin; it ends with this process, however that ends.

    Raises DoesNotFitError, WorkbenchError.
    """
    try:
        done = subprocess.run(
            torch_command("gpuworkbench.tools.parent", str(os.getpid()), name, kind),
            input=dump_toml(config),
            capture_output=True,
            env=trainer_environment(),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkbenchError(f"the {name} took longer than {timeout_s:.0f} s", "use --tier analytic") from None
    except OSError as error:
        raise WorkbenchError(f"the {name} cannot be started: {error.strerror or error}") from None
    if done.returncode == 0:
        try:
            return msgspec.json.decode(done.stdout.splitlines()[-1], type=answer)
        except (ValueError, IndexError):
            raise WorkbenchError(f"the {name}'s answer is malformed", "use --tier analytic") from None
    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    said = safe_text(last[0].removeprefix("gpuworkbench: "), max_chars=300) if last else f"exit code {done.returncode}"
    kind_of_error = DoesNotFitError if done.returncode == ExitCode.DOES_NOT_FIT else WorkbenchError
    raise kind_of_error(f"the {name} failed: {said}")
