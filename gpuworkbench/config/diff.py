"""What differs between two configs, and which differences a resume may have.

A key that changes the path training takes is semantic: changing it makes another run, so it needs `--fork`. How long
to train, how often to look and where to compute are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.config.schema import RunConfig

FREE_SECTIONS = frozenset({"checkpoint", "eval", "sample", "early_stopping"})
FREE_KEYS = frozenset(
    {
        "train.max_steps",
        "train.max_epochs",
        "train.log_interval_steps",
        "train.on_nonfinite",
        "device.index",
        "device.uuid",
        "device.memory_limit_gib",
        "memory.cross_entropy_chunk_rows",
    }
)
BOOKKEEPING = frozenset({"description", "preset", "forked_from", "schema_version", "cpu_twin"})


class Difference(NamedTuple):
    """One key with its two values."""

    key: str
    old: Any
    new: Any

    @property
    def is_semantic(self) -> bool:
        """Whether the change makes it another run."""
        return self.key not in FREE_KEYS and self.key.partition(".")[0] not in FREE_SECTIONS

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


def differences(old: RunConfig, new: RunConfig) -> list[Difference]:
    """Keys whose values differ, in the order of the schema."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = dict.fromkeys([*before, *after])
    return [Difference(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def _flat(config: RunConfig) -> Iterator[tuple[str, Any]]:
    for section, value in msgspec.to_builtins(config).items():
        if section in BOOKKEEPING:
            continue
        if isinstance(value, dict):
            yield from ((f"{section}.{name}", child) for name, child in value.items())
        else:
            yield section, value
