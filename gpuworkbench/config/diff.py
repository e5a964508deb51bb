"""What differs between two configs, and which differences a resume may have.

A key that changes the path training takes is semantic: changing it makes another run, so it needs `--fork`. How long
to train, how often to look and where to compute are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        "hybrid.undo_storage",
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
    return [Difference(key, before, after) for key, (before, after) in differing((old, new)).items()]


def differing(configs: Sequence[RunConfig | None]) -> dict[str, list[Any]]:
    """Keys that are not the same in all of `configs`, with each one's value, in the order of the schema.

    A key that a model family lacks is None there. A config that is None (not readable) makes no difference.
    """
    tables = [dict(flat(config)) if config is not None else None for config in configs]
    keys = dict.fromkeys(key for table in tables for key in table or ())
    found = {}
    for key in keys:
        values = [table.get(key) for table in tables if table is not None]
        if any(value != values[0] for value in values[1:]):
            found[key] = [None if table is None else table.get(key) for table in tables]
    return found


def flat(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Every `section.key` with its value, without what is bookkeeping."""
    for section, value in msgspec.to_builtins(config).items():
        if section in BOOKKEEPING:
            continue
        if isinstance(value, dict):
            yield from ((f"{section}.{name}", child) for name, child in value.items())
        else:
            yield section, value
