"""Small answers that took real steps to find, remembered on this machine: a file each in the user's state directory.

A file's name is made of all that its answer depends on, so that nothing is ever out of date.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

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
Answer = TypeVar("Answer", bound=Struct)


def path_of(kind: str, config: RunConfig, target: Target, train: Mapping[str, Any], *more: object) -> Path:
    """The file of a `kind` of answer about `config` on a device: a card by its name, id, capability, memory and driver,
    a host by its CPU. Of [train] it depends on `train`, of the other sections on everything but the learning rate."""
    parts = {name: msgspec.to_builtins(getattr(config, name)) for name in SECTIONS}
    for name in ("index", "uuid", "kind"):
        parts["device"].pop(name, None)
    parts["optimizer"].pop("lr")
    card = target.card
    told: list[object] = [cpu_name() or "cpu"]
    if card is not None:
        told = [card.name, card.uuid, card.compute_capability, card.memory_total_bytes, card.driver_version]
    key = [target.kind, *told, __version__, _version("torch"), {**parts, "train": dict(train)}, *more]
    digest = hashlib.sha256(msgspec.json.encode(key, order="deterministic")).hexdigest()
    return Path(platformdirs.user_state_dir("gpuworkbench")) / kind / f"{digest[:32]}.json"


def read(path: Path, answer: type[Answer]) -> Answer | None:
    """The answer, None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return msgspec.json.decode(read_regular_file(path, MAX_FILE_BYTES), type=answer)
    return None


def write(path: Path, answer: Struct) -> None:
    """Remember it; a disk that is full costs the memory of it alone."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, msgspec.json.encode(answer))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
