"""Does a series oscillate, or is it noise? Fisher's exact test of the largest peak of a periodogram.

Counting sign changes would call white noise an oscillation: its differences alternate two times out of three.
Fisher, R. A. (1929), Tests of significance in harmonic analysis, Proc. R. Soc. A 125, 54-59.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

WINDOW = 63  # odd: every frequency has two degrees of freedom, as the test asks for
SLOWEST = 4  # periods in a window; slower ones are the trend of the loss, not an oscillation
FALSE_ALARM = 1e-8  # probability a test


def oscillation_share(values: Sequence[float]) -> float:
    """The largest peak's share of the periodogram's sum, over frequencies of at least SLOWEST periods a window."""
    series = np.asarray(values, dtype=np.float64)
    power = np.abs(np.fft.rfft(series - series.mean())) ** 2
    band = power[SLOWEST:]
    total = float(band.sum())
    return float(band.max()) / total if total > 0.0 else 0.0


def fisher_tail(share: float, n: int) -> float:
    """P(largest share of n exponential powers > share) under white noise; exact (Fisher's alternating sum)."""
    total = 0.0
    for k in range(1, min(n, int(1.0 / share)) + 1):
        total += (-1) ** (k - 1) * math.comb(n, k) * max(0.0, 1.0 - k * share) ** (n - 1)
    return min(1.0, max(0.0, total))


@functools.cache
def significant_share(window: int = WINDOW, probability: float = FALSE_ALARM) -> float:
    """The share that white noise exceeds with `probability`, by bisection; about 0.5 for a window of 63."""
    n = window // 2 + 1 - SLOWEST
    low, high = 1.0 / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if fisher_tail(middle, n) > probability else (low, middle)
    return high
