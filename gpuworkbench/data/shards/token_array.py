"""One split's tokens as one array, however many shards (or parts of shards) they lie in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt


class TokenArray:
    """Read-only tokens over memory-mapped parts. Nothing is read before it is asked for."""

    def __init__(
        self,
        parts: Sequence[npt.NDArray[np.generic]],
        masks: Sequence[npt.NDArray[np.generic] | None] | None = None,
    ) -> None:
        """`parts` are integer arrays (N_i,), read one after the other; `masks` (N_i,) are 0 where a token is not
        scored, None for a part that is scored as a whole."""
        pairs = [(part, mask) for part, mask in zip(parts, masks or [None] * len(parts), strict=True) if len(part)]
        if any(mask is not None and len(mask) != len(part) for part, mask in pairs):
            raise ValueError("a mask has one entry a token")
        # Plain views of the maps: slicing np.memmap itself costs three times as much.
        self._parts = tuple(np.asarray(part) for part, _ in pairs)
        self._masks = tuple(mask for _, mask in pairs)
        self.has_mask = any(mask is not None for mask in self._masks)  # whether any part has an answer mask
        self._ends = list(accumulate(len(part) for part in self._parts))
        self._length = self._ends[-1] if self._parts else 0

    def __len__(self) -> int:
        return self._length

    def slice(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens [start, start + length) as int64 (length,). Raises IndexError outside of the array."""
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start}..{start + length} of {len(self)}")
        result = np.empty(length, dtype=np.int64)
        for number, inside, filled, count in self._stretches(start, length):
            result[filled : filled + count] = self._parts[number][inside : inside + count]
        return result

    def scored(self, start: int, length: int) -> npt.NDArray[np.bool_] | None:
        """Which of tokens [start, start + length) are scored as targets (length,); None where no part has a mask.

        Raises IndexError outside of the array.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start}..{start + length} of {len(self)}")
        if not self.has_mask:
            return None
        result = np.ones(length, dtype=np.bool_)
        for number, inside, filled, count in self._stretches(start, length):
            mask = self._masks[number]
            if mask is not None:
                result[filled : filled + count] = mask[inside : inside + count]
        return result

    def count_scored(self) -> int:
        """How many tokens are scored as targets; reads every mask once."""
        pairs = zip(self._parts, self._masks, strict=True)
        return sum(len(part) if mask is None else int(np.count_nonzero(mask)) for part, mask in pairs)

    def _stretches(self, start: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """(part, first index inside of it, how much came before, count) of each part that the slice touches."""
        filled = 0
        number = bisect_right(self._ends, start)
        while filled < length:
            size = len(self._parts[number])
            inside = start + filled - (self._ends[number] - size)
            count = min(size - inside, length - filled)
            yield number, inside, filled, count
            filled += count
            number += 1
