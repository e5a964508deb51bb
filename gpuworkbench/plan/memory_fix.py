"""The one change to a configuration that would have kept it within memory, chosen by the planner's own estimate.

Changes are tried from the cheapest on: none of them changes what is trained, the tokens of a step least of all. What
the run is known to have needed beyond its estimate is added to every estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.config.memory_rules import without_idle_distance
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import checkpoint_format
from gpuworkbench.config.validate import problems
from gpuworkbench.plan.analytic import TIGHT_SHARE, Estimate, estimate

Value = bool | int | str

# What a fix may set: a log is foreign input, so whoever applies one checks it against this table.
FIX_KEYS: Mapping[str, type] = {
    "train.micro_batch_size": int,
    "train.grad_accum_steps": int,
    "memory.chunked_cross_entropy": bool,
    "memory.activation_checkpointing": str,
    "memory.optimizer_offload": str,
}
_SWITCHES: tuple[tuple[str, Value], ...] = (
    ("memory.chunked_cross_entropy", True),
    ("memory.activation_checkpointing", "all"),
    ("memory.optimizer_offload", "streamed"),
)


class Fix(NamedTuple):
    """Keys to set, the bytes predicted with them, and whether those are within the limit (None: no limit known)."""

    changes: Mapping[str, Value]
    predicted_bytes: int
    fits: bool | None

    def flags(self) -> str:
        """The change as a person types it."""
        return " ".join(f"--set {key}={_toml(value)}" for key, value in self.changes.items())


def find_fix(
    config: RunConfig,
    *,
    kind: str,
    limit_bytes: int | None = None,
    needed_bytes: int | None = None,
    validating: bool = False,
) -> Fix | None:
    """The first change predicted to fit; where none is, the one that comes closest; None where nothing helps.

    `kind`: cuda or cpu. `needed_bytes`: what the run was seen to need at least (in use and asked for). `validating`:
    it is validation that does not fit, with a single sequence at a time: only what it uses can help.
    """
    before = estimate(config, kind=kind)
    if before is None:
        return None
    size = _size(before, kind)
    unplanned = max(0, needed_bytes - size) if needed_bytes is not None else 0
    best: Fix | None = None
    for changes in _candidates(config, validating=validating):
        changed = with_changes(config, changes)
        if checkpoint_format(changed) != checkpoint_format(config):  # the run goes on from its last checkpoint
            continue
        after = estimate(changed, kind=kind)
        if after is None or _size(after, kind) >= size or next(iter(problems(changed)), None) is not None:
            continue
        predicted = _size(after, kind) + unplanned
        fits = None if limit_bytes is None else predicted <= limit_bytes * TIGHT_SHARE
        if fits is not False:
            return Fix(changes, predicted, fits)
        if best is None or predicted < best.predicted_bytes:
            best = Fix(changes, predicted, fits)
    return best


def with_changes(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """`config` with `section.key` values replaced as overrides replace them, not validated."""
    for key, value in changes.items():
        section, _, name = key.partition(".")
        changed = msgspec.structs.replace(getattr(config, section), **{name: value})
        config = msgspec.structs.replace(config, **{section: changed})
    return without_idle_distance(config)


def micro_batches(config: RunConfig) -> Iterator[dict[str, Value]]:
    """Smaller micro-batches with as many tokens a step, the largest first, each at most half of the one before."""
    size, sequences = config.train.micro_batch_size, config.train.micro_batch_size * config.train.grad_accum_steps
    while size > 1:
        size = next(smaller for smaller in range(size // 2, 0, -1) if sequences % smaller == 0)
        yield {"train.micro_batch_size": size, "train.grad_accum_steps": sequences // size}


def _candidates(config: RunConfig, *, validating: bool) -> Iterator[Mapping[str, Value]]:
    if not validating:
        yield from micro_batches(config)
    for key, value in _SWITCHES:
        section, _, name = key.partition(".")
        is_for_validation = key == "memory.chunked_cross_entropy"
        if getattr(getattr(config, section), name) != value and (is_for_validation or not validating):
            yield {key: value}


def _size(estimated: Estimate, kind: str) -> int:
    """Bytes where the run computes, the process around it included."""
    return estimated.total_bytes if kind == "cuda" else estimated.host_bytes


def _toml(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
