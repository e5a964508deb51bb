"""What probes measured, remembered on this machine: per device, driver, versions and configuration."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from pathlib import Path
from typing import NamedTuple

import msgspec
import platformdirs
from msgspec import Struct

from gpuworkbench import __version__
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.gpu.host import cpu_name
from gpuworkbench.io import atomic_write_bytes
from gpuworkbench.io.reading import read_regular_file
from gpuworkbench.plan.targets import Target

MAX_FILE_BYTES = 64 * 1024
MAX_BYTES = 2**50  # no device has more
SECTIONS = ("model", "memory", "hybrid", "optimizer", "device")
TRAIN_KEYS = ("micro_batch_size", "seq_len", "mode", "grad_clip_norm")


class Probe(Struct, frozen=True, kw_only=True):
    """Bytes of tensors at the peak, seconds of the second step, and what the process took beside."""

    peak_bytes: int
    step_time_s: float
    context_bytes: int | None = None
    host_rss_bytes: int | None = None


class ProbeKey(NamedTuple):
    """The file's name, and what it was made of."""

    digest: str
    device: str


def probe_folder() -> Path:
    """Where they are kept."""
    return Path(platformdirs.user_state_dir("gpuworkbench")) / "probes"


def probe_key(config: RunConfig, target: Target) -> ProbeKey:
    """What the result of a probe depends on; the number of micro-batches of a step only as one or more."""
    card = target.card
    device = (card.uuid or card.name or "card") if card is not None else (cpu_name() or "cpu")
    parts = {name: msgspec.to_builtins(getattr(config, name)) for name in SECTIONS}
    parts["train"] = {name: getattr(config.train, name) for name in TRAIN_KEYS} | {
        "seq_len": config.train_seq_len,
        "accumulates": config.train.grad_accum_steps > 1,
    }
    for name in ("index", "uuid", "kind"):
        parts["device"].pop(name, None)
    versions = [__version__, package_version("torch"), card.driver_version if card is not None else None]
    text = msgspec.json.encode([target.kind, device, versions, parts], order="deterministic")
    return ProbeKey(hashlib.sha256(text).hexdigest()[:32], device)


def read_probe(key: ProbeKey) -> Probe | None:
    """The remembered probe, None where there is none that can be read, or it says what no probe measures."""
    with contextlib.suppress(OSError, ValueError):
        found = msgspec.json.decode(read_regular_file(_path(key), MAX_FILE_BYTES), type=Probe)
        return found if _can_be(found) else None
    return None


def _can_be(found: Probe) -> bool:
    beside = [each for each in (found.context_bytes, found.host_rss_bytes) if each is not None]
    return found.step_time_s > 0 and all(0 < each <= MAX_BYTES for each in (found.peak_bytes, *beside))


def write_probe(key: ProbeKey, probe: Probe) -> None:
    """Remember it; a disk that is full costs the memory of it, not the plan."""
    path = _path(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, msgspec.json.encode(probe))


def _path(key: ProbeKey) -> Path:
    return probe_folder() / f"{key.digest}.json"


def device_parts(target: Target) -> list[object]:
    """What tells this device from another: of a card name, id, capability, memory and driver; of a host its CPU."""
    card = target.card
    if card is None:
        return [target.kind, cpu_name() or "cpu"]
    told = [card.name, card.uuid, card.compute_capability, card.memory_total_bytes, card.driver_version]
    return [target.kind, *told]


def package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
