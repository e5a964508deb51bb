"""What a run was predicted to take and what it took: said at its start and kept at its end, for later plans."""

from __future__ import annotations

import contextlib
import resource
import statistics
import time

import torch

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import storage_of
from gpuworkbench.events.codec import decode_line
from gpuworkbench.events.schema import Step
from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.io.reading import read_tail
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.plan.calibration import MIN_READINGS, Record, add_record
from gpuworkbench.runs.tail import TAIL_BYTES
from gpuworkbench.training.setup import TrainingRun


def predicted_peak_bytes(config: RunConfig) -> int | None:
    """As far as it can be measured: what the allocator is to hold on a card, the whole process where there is none."""
    kind = "cuda" if config.device.kind == "cuda" else "cpu"
    predicted = estimate(config, kind=kind)
    if predicted is None:
        return None
    return predicted.allocator_bytes if kind == "cuda" else predicted.host_bytes


def measured_peak_bytes(run: TrainingRun) -> int:
    """The same, measured."""
    if run.device.torch_device.type == "cuda":
        return torch.cuda.max_memory_allocated(run.device.torch_device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def recent_rates(run: TrainingRun) -> list[float]:
    """Tokens a second of this attempt's last steps, from the log's end."""
    try:
        lines = read_tail(run.paths.events, TAIL_BYTES).data.split(b"\n")[1:-1]
    except OSError:
        return []
    steps = (event for event in map(decode_line, lines) if isinstance(event, Step))
    return [step.tokens_per_s for step in steps if step.attempt == run.events.attempt and step.tokens_per_s]


def keep_measured(run: TrainingRun) -> None:
    """Add this attempt to the machine's records; one that was too short, or a full disk, adds none."""
    predicted = predicted_peak_bytes(run.config)
    model, rates = run.config.model, recent_rates(run)
    if predicted is None or len(rates) < MIN_READINGS:
        return
    is_card = run.device.torch_device.type == "cuda"
    flops = statistics.median(rates) * model.flops_per_token(run.config.train_seq_len)
    record = Record(
        time_unix_s=time.time(),
        kind="cuda" if is_card else "cpu",
        device=(run.device.card if is_card else cpu_name()) or "",
        simulated=run.device.simulated_card is not None,
        preset=run.config.label,
        storage=storage_of(run.config.memory),
        n_params=model.n_params(),
        predicted_bytes=predicted,
        measured_bytes=measured_peak_bytes(run),
        flops_per_s=flops,
        torch=str(torch.__version__),
    )
    with contextlib.suppress(OSError):
        add_record(record)
