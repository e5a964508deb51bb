"""The order in which training windows are read: a pure function of (seed, epoch, index).

Nothing is shuffled in memory: an epoch is a keyed permutation of its windows, computed for any index in O(1), so a
resumed run goes on in the middle of an epoch without replaying it. The permutation is a generalised Feistel network
over Z_a x Z_b with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

NOT_SCORED = -100  # a target that the loss leaves out, as in torch
BLOCK_SEQUENCES = 512
_ROUNDS = 8
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # the finaliser of splitmix64 (Steele, Lea and Flood 2014)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Tokens(Protocol):
    """What a batch is cut from. Targets that are not `scored` become NOT_SCORED."""

    def __len__(self) -> int: ...

    def slice(self, start: int, length: int) -> IntArray:
        """`length` tokens from `start` on, as int64."""
        ...

    def scored(self, start: int, length: int) -> npt.NDArray[np.bool_] | None:
        """Which of them are scored as targets, None for all."""
        ...


@dataclass(frozen=True)
class SampleOrder:
    """Which window of `seq_len` + 1 tokens is sequence number `index` of an epoch.

    An epoch has `n_windows` windows that do not overlap in their inputs; each is visited exactly once. They start at
    an offset in [0, seq_len) that changes with the epoch, so that document parts meet different contexts.
    """

    n_tokens: int
    seq_len: int
    seed: int

    def __post_init__(self) -> None:
        if self.seq_len < 1 or self.n_tokens < self.seq_len + 1:
            raise ValueError(f"{self.n_tokens} tokens hold no window of {self.seq_len} + 1 tokens")

    @property
    def n_windows(self) -> int:
        """Sequences per epoch, the same in every epoch. The last, partial stretch is left to the offset's play."""
        return max(1, (self.n_tokens - self.seq_len) // self.seq_len)

    def offset(self, epoch: int) -> int:
        """Token at which the epoch's first window starts."""
        play = min(self.seq_len, self.n_tokens - self.n_windows * self.seq_len)
        return int(_key(self.seed, epoch)[_ROUNDS] % np.uint64(play))

    def starts(self, epoch: int, indices: npt.ArrayLike) -> IntArray:
        """Start tokens of the sequences `indices` (N,) of `epoch`, as int64 (N,)."""
        windows = permute(np.atleast_1d(np.asarray(indices, dtype=np.int64)), self.n_windows, self.seed, epoch)
        return windows * self.seq_len + self.offset(epoch)

    def starts_at(self, position: int, count: int) -> IntArray:
        """Start tokens (count,) of the sequences from global `position` on, across epoch boundaries."""
        parts = []
        while count > 0:
            epoch, index = divmod(position, self.n_windows)
            number, inside = divmod(index, BLOCK_SEQUENCES)
            part = _block(self, epoch, number)[inside : inside + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=4)
def _block(order: SampleOrder, epoch: int, number: int) -> IntArray:
    """Starts of the epoch's sequences [number, number + 1) * BLOCK_SEQUENCES: computed together, since a permuted
    number costs a hundred times as much alone."""
    first = number * BLOCK_SEQUENCES
    starts = order.starts(epoch, np.arange(first, min(first + BLOCK_SEQUENCES, order.n_windows)))
    starts.flags.writeable = False
    return starts


def batch(
    tokens: Tokens, order: SampleOrder, position: int, batch_size: int, part: tuple[int, int] | None = None
) -> tuple[IntArray, IntArray]:
    """Inputs and targets, int64 (B, T) each, of the `batch_size` sequences from global `position` on.

    `position` counts all sequences consumed since the run began; it is all that a checkpoint has to keep. With
    `part` = (t, j) only part j (0 is the first) of each sequence cut into parts of t tokens, (B, t) each; t divides T.
    """
    seq_len, number = part or (order.seq_len, 0)
    return cut(tokens, order.starts_at(position, batch_size) + number * seq_len, seq_len)


def validation_batch(tokens: Tokens, index: int, batch_size: int, seq_len: int) -> tuple[IntArray, IntArray]:
    """Inputs and targets, int64 (B, T) each, of validation batch `index`: fixed contiguous windows from the start.

    Raises ValueError beyond the split's end (`check_eval_tokens` says how many batches there are).
    """
    first = index * batch_size
    starts = np.arange(first, first + batch_size, dtype=np.int64) * seq_len
    if index < 0 or starts[-1] + seq_len + 1 > len(tokens):
        raise ValueError(f"validation batch {index} lies beyond the split's {len(tokens)} tokens")
    return cut(tokens, starts, seq_len)


def permute(indices: IntArray, n: int, seed: int, epoch: int) -> IntArray:
    """The keyed permutation of [0, n) applied to `indices` (N,), each in [0, n)."""
    if indices.size and (indices.min() < 0 or indices.max() >= n):
        raise ValueError(f"index outside of [0, {n})")
    a = math.isqrt(n - 1) + 1  # ceil(sqrt(n)): the domain a x b exceeds n by less than a
    b = -(-n // a)
    keys = _key(seed, epoch)
    result = _feistel(indices.astype(np.uint64), a, b, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:  # cycle walking: rare, since fewer than sqrt(n) + 1 values lie outside
        result[outside] = _feistel(result[outside], a, b, keys)
        outside = outside[result[outside] >= n]
    return result.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], a: int, b: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    left, right = values // np.uint64(b), values % np.uint64(b)
    for number in range(_ROUNDS):
        if number % 2 == 0:
            left = (left + _mix(right ^ keys[number]) % np.uint64(a)) % np.uint64(a)
        else:
            right = (right + _mix(left ^ keys[number]) % np.uint64(b)) % np.uint64(b)
    return left * np.uint64(b) + right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=16)
def _key(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """Round keys and, last, the epoch's offset word. Kept, since every batch of an epoch asks for them."""
    digest = b"".join(
        hashlib.blake2b(f"{seed}/{epoch}/{part}".encode(), digest_size=64, person=b"sample-order").digest()
        for part in range(2)
    )
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    keys.flags.writeable = False
    return keys


def cut(tokens: Tokens, starts: IntArray, seq_len: int) -> tuple[IntArray, IntArray]:
    """Inputs and targets, int64 (B, seq_len) each, of the windows that begin at `starts` (B,)."""
    block = np.empty((len(starts), seq_len + 1), dtype=np.int64)
    for row, start in enumerate(starts.tolist()):
        block[row] = tokens.slice(start, seq_len + 1)
    x, y = block[:, :-1].copy(), block[:, 1:].copy()  # a single row would else be shared: y is written to below
    for row, start in enumerate(starts.tolist()):
        if (scored := tokens.scored(start + 1, seq_len)) is not None:
            y[row][~scored] = NOT_SCORED
    return x, y
