"""One split's tokens as one array, however many shards (or parts of shards) they lie in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class TokenArray:
    """Read-only tokens over memory-mapped parts. Nothing is read before it is asked for."""

    def __init__(self, parts: Sequence[npt.NDArray[np.generic]]) -> None:
        """`parts` are integer arrays (N_i,); they are read one after the other."""
        self._parts = tuple(part for part in parts if len(part))
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    def slice(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens [start, start + length) as int64 (length,). Raises IndexError outside of the array."""
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start}..{start + length} of {len(self)}")
        result = np.empty(length, dtype=np.int64)
        filled = 0
        number = int(np.searchsorted(self._ends, start, side="right"))
        while filled < length:
            part = self._parts[number]
            inside = start + filled - (int(self._ends[number]) - len(part))
            piece = part[inside : inside + length - filled]
            result[filled : filled + len(piece)] = piece
            filled += len(piece)
            number += 1
        return result
