"""The ticks a dynamics model learns from: a ring of the newest, each with what the trend said would follow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from gpuworkbench.hybrid.dynamics.features import N_FEATURES
from gpuworkbench.hybrid.plain_state import PlainState

STRIDE = 5  # true steps a tick: their mean loss is what is forecast, since one loss is mostly noise
AHEAD = 4  # ticks that are imagined
BURN_IN = 6  # ticks that a state is filtered from
CAPACITY = 256


class Sequences(NamedTuple):
    """Raw features (B, BURN_IN, N_FEATURES) and, of the AHEAD ticks after them, log-loss minus the trend's forecast."""

    vectors: np.ndarray
    misses: np.ndarray


class Replay(PlainState):
    """`count` ticks were seen; the newest CAPACITY are kept, in float64."""

    NAMES = ("count",)
    TENSORS = ("vectors", "levels", "anchors")

    def __init__(self) -> None:
        self.count = 0
        self.vectors = torch.zeros(CAPACITY, N_FEATURES, dtype=torch.float64)
        self.levels = torch.zeros(CAPACITY, dtype=torch.float64)  # mean log-loss of the tick
        self.anchors = torch.zeros(CAPACITY, AHEAD, dtype=torch.float64)  # the trend's forecasts at the tick's end

    def push(self, vector: np.ndarray, level: float, anchors: np.ndarray) -> None:
        """A finished tick."""
        at = self.count % CAPACITY
        self.vectors.numpy()[at] = vector
        self.levels.numpy()[at] = level
        self.anchors.numpy()[at] = anchors
        self.count += 1

    def recent(self) -> np.ndarray:
        """Raw features of the newest BURN_IN ticks, oldest first (fewer at the start)."""
        first = max(0, self.count - BURN_IN)
        return self.vectors.numpy()[np.arange(first, self.count) % CAPACITY]

    def n_sequences(self) -> int:
        """How many whole sequences are kept."""
        return max(0, min(self.count, CAPACITY) - BURN_IN - AHEAD + 1)

    def sequences(self, back: np.ndarray) -> Sequences:
        """The sequences that begin `back` sequences before the newest one (0: the newest)."""
        first = self.count - BURN_IN - AHEAD - back
        ticks = (first[:, None] + np.arange(BURN_IN + AHEAD)) % CAPACITY
        levels, anchors = self.levels.numpy(), self.anchors.numpy()
        return Sequences(
            self.vectors.numpy()[ticks[:, :BURN_IN]],
            levels[ticks[:, BURN_IN:]] - anchors[ticks[:, BURN_IN - 1]],
        )
