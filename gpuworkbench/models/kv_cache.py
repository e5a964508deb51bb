"""Keys and values of the tokens seen so far, so that generating a token costs one position, not the whole context."""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """Keys and values of one layer, (B, heads, capacity, head size) each, of which `length` positions are filled."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, heads, T, head size) and return all filled positions. After the first call T must be 1.

        Raises ValueError when the cache is full, or when several positions follow earlier ones.
        """
        t = k.shape[2]
        if self.length and t != 1:
            raise ValueError("a cache that holds positions takes one more at a time")
        end = self.length + t
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, not {end}")
        if self._keys is None or self._values is None:
            shape = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            self._keys, self._values = k.new_empty(shape), v.new_empty(shape)
        self._keys[:, :, self.length : end] = k
        self._values[:, :, self.length : end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class KvCache:
    """One `LayerCache` a layer."""

    def __init__(self, n_layer: int, capacity: int) -> None:
        self.capacity = capacity
        self.layers = [LayerCache(capacity) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """Positions held."""
        return self.layers[0].length
