"""The largest micro-batch that fits a device: the search for it, and what a search found, remembered on this machine.

The tokens of a step are kept, so the sizes that count are the divisors of its sequences. Memory grows with the
micro-batch: where one size fits, every smaller one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import storage_bytes
from gpuworkbench.config.validate import problems
from gpuworkbench.plan.remembered import MAX_BYTES, path_of, read
from gpuworkbench.plan.targets import Target


class MicroBatch(Struct, frozen=True, kw_only=True):
    """What a search found. `needed_bytes`: what the device's limit is held against, at that size, probed."""

    micro_batch_size: int
    grad_accum_steps: int
    needed_bytes: int
    limit_bytes: int
    n_probes: int

    @property
    def sets(self) -> tuple[str, ...]:
        """The keys that use it, as `--set` takes them."""
        return (
            f"train.micro_batch_size={self.micro_batch_size}",
            f"train.grad_accum_steps={self.grad_accum_steps}",
        )

    @property
    def flags(self) -> str:
        """As they are typed."""
        return " ".join(f"--set {text}" for text in self.sets)


def with_micro_batch(config: RunConfig, size: int) -> RunConfig:
    """The same step in micro-batches of `size` sequences, which divides the step's."""
    sequences = config.train.micro_batch_size * config.train.grad_accum_steps
    assert sequences % size == 0
    train = msgspec.structs.replace(config.train, micro_batch_size=size, grad_accum_steps=sequences // size)
    return msgspec.structs.replace(config, train=train)


def sizes(config: RunConfig) -> list[int]:
    """Micro-batches that make the same step and that the configuration's rules allow, the smallest first."""
    sequences = config.train.micro_batch_size * config.train.grad_accum_steps
    lower = [size for size in range(1, int(sequences**0.5) + 1) if sequences % size == 0]
    every = sorted({*lower, *(sequences // size for size in lower)})
    return [size for size in every if not any(True for _ in problems(with_micro_batch(config, size)))]


def largest_that_fits(ordered: Sequence[int], start: int, fits: Callable[[int], bool]) -> int | None:
    """The largest of the `ordered` sizes that `fits`, None where none does; asked of each at most once.

    From `start`, one of them, by doubling while it fits or by halving until it does; then by bisecting what is between.
    """
    low, high = -1, len(ordered)  # all up to `low` fit, none from `high` on does
    at = ordered.index(start)
    while low < at < high:
        if fits(ordered[at]):
            low = at
            doubled = (i for i in range(at + 1, high) if ordered[i] >= 2 * ordered[at])
            at = next(doubled, high - 1) if high == len(ordered) else (low + high) // 2
        else:
            high = at
            halved = (i for i in range(at - 1, low, -1) if 2 * ordered[i] <= ordered[at])
            at = next(halved, low + 1) if low < 0 else (low + high) // 2
    return ordered[low] if low >= 0 else None


def read_micro_batch(config: RunConfig, target: Target, within_bytes: int | None = None) -> MicroBatch | None:
    """What a search for this configuration on this device, or within so much of it, found; None without one, and
    where the file says what no search finds."""
    found = read(micro_batch_path(config, target, within_bytes), MicroBatch)
    return found if found is not None and _can_be(found, config, within_bytes) else None


def _can_be(found: MicroBatch, config: RunConfig, within_bytes: int | None) -> bool:
    """Whether a search for `config` may have found this: the same step, in a size that its rules allow, that takes no
    less than the weights and fits its limit."""
    sequences = config.train.micro_batch_size * config.train.grad_accum_steps
    if found.micro_batch_size < 1 or found.micro_batch_size * found.grad_accum_steps != sequences:
        return False
    if within_bytes is not None and found.limit_bytes != within_bytes:
        return False
    least = storage_bytes(config).weights
    if not least <= found.needed_bytes <= found.limit_bytes <= MAX_BYTES or found.n_probes < 1:
        return False
    return not any(True for _ in problems(with_micro_batch(config, found.micro_batch_size)))


def micro_batch_path(config: RunConfig, target: Target, within_bytes: int | None = None) -> Path:
    """The file it is remembered in: everything counts but how a step is cut."""
    train = {
        "sequences": config.train.micro_batch_size * config.train.grad_accum_steps,
        "seq_len": config.train_seq_len,
        "mode": config.train.mode,
        "grad_clip_norm": config.train.grad_clip_norm,
    }
    return path_of("micro_batches", config, target, train, within_bytes)
