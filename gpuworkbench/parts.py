"""What a checkpoint holds of one thing: tensors and plain values. Everything with state on the torch side shares it.

A part's tensors are saved as `<part>.safetensors`, its plain values in state.json. What is in no part is not resumed;
tests/training/test_state_completeness.py looks for tensors, generators and counters that no part owns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from gpuworkbench.errors import CheckpointError


@dataclass
class Part:
    """One part's content: `tensors` by name (on any device), `values` as JSON can hold them.

    `finite` names the tensors without which a checkpoint is worthless when they hold NaN or Inf (the weights).
    `is_lasting`: nobody writes to the tensors any more, so that a checkpoint needs no copy of those on the host.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    finite: frozenset[str] = frozenset()
    is_lasting: bool = False


@runtime_checkable
class Stateful(Protocol):
    """What can be saved and restored. `version` changes when the meaning of the content does."""

    version: int

    def state(self) -> Part:
        """The content now; tensors are live references, copied by the caller."""

    def load(self, part: Part) -> None:
        """Restore in place. Raises CheckpointError where the content does not belong here."""


@runtime_checkable
class MayBeMissing(Protocol):
    """What a checkpoint made without it (before a fork that switched it on) restores to its beginning."""

    def reset(self) -> None:
        """As at the beginning of a run."""


def check_names(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """CheckpointError when two sets of names differ, naming the first of each side."""
    missing = sorted(set(expected) - set(found))
    surplus = sorted(set(found) - set(expected))
    if missing or surplus:
        raise CheckpointError(
            f"{what} of the checkpoint do not match this run: missing {missing[:3]}, unexpected {surplus[:3]}",
            "the checkpoint belongs to another model or version",
        )
