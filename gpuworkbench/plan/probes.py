"""What probes measured, remembered on this machine: per device, driver, versions and configuration."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.plan.remembered import MAX_BYTES, path_of, read
from gpuworkbench.plan.targets import Target

TRAIN_KEYS = ("micro_batch_size", "mode", "grad_clip_norm")


class Probe(Struct, frozen=True, kw_only=True):
    """Bytes of tensors at the peak, seconds of the second step, and what the process took beside."""

    peak_bytes: int
    step_time_s: float
    context_bytes: int | None = None
    host_rss_bytes: int | None = None


def probe_path(config: RunConfig, target: Target) -> Path:
    """The file; the number of micro-batches of a step counts only as one or more."""
    train = {name: getattr(config.train, name) for name in TRAIN_KEYS} | {
        "seq_len": config.train_seq_len,
        "accumulates": config.train.grad_accum_steps > 1,
    }
    return path_of("probes", config, target, train)


def read_probe(path: Path) -> Probe | None:
    """The remembered probe, None where there is none that can be read, or it says what no probe measures."""
    found = read(path, Probe)
    return found if found is not None and _can_be(found) else None


def _can_be(found: Probe) -> bool:
    beside = [each for each in (found.context_bytes, found.host_rss_bytes) if each is not None]
    return found.step_time_s > 0 and all(0 < each <= MAX_BYTES for each in (found.peak_bytes, *beside))
