"""Student's t without a library: the interval of a mean of paired differences, and its p-value.

Paired by seed, so that what a seed does to both sides cancels. A ratio is compared through its logarithm: its interval
is then that of the geometric mean. The distribution function is the regularised incomplete beta function, by its
continued fraction (DLMF 8.17.22, evaluated as by Lentz 1976); quantiles are found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

LEVEL = 0.95
_TINY = 1e-300
_MAX_TERMS = 500


class Interval(NamedTuple):
    """A mean with its interval: `low` and `high` are infinite where one value says nothing about the spread."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided, of the mean being 0

    def exp(self) -> Interval:
        """Of logarithms of ratios: the geometric mean of the ratios, with its interval."""
        return Interval(math.exp(self.mean), math.exp(self.low), _exp(self.high), self.p_value)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The t-interval of the mean of `values` (one or more, finite): mean -+ t(n - 1) s / sqrt(n)."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf, 1.0)
    error = stdev(values) / math.sqrt(len(values))
    freedom = len(values) - 1
    if error == 0.0:
        return Interval(mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    reach = t_quantile(0.5 + level / 2, freedom) * error
    return Interval(mean, mean - reach, mean + reach, 2 * (1 - t_probability(abs(mean) / error, freedom)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979, "A simple sequentially rejective multiple test procedure")."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def t_quantile(probability: float, freedom: int) -> float:
    """The t that a variable with `freedom` degrees of freedom stays below with `probability` (0.5 or more)."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"no t for probability {probability} and {freedom} degrees of freedom")
    high = 1.0
    while t_probability(high, freedom) < probability:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
    return high


def t_probability(t: float, freedom: int) -> float:
    """The probability that a variable with `freedom` degrees of freedom is at most `t`."""
    if t * t < freedom:  # near the middle: 1 - x would lose what the other form keeps
        return 0.5 + math.copysign(0.5, t) * incomplete_beta(0.5, freedom / 2, t * t / (freedom + t * t))
    tail = 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for a, b > 0 and x in [0, 1]."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1 - incomplete_beta(b, a, 1 - x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(logarithm) / a / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)), the denominator of the continued fraction."""
    value, above, below = 1.0, 1.0, 0.0
    for n in range(1, _MAX_TERMS):
        m = n // 2
        if n % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / _nonzero(1 + term * below)
        above = _nonzero(1 + term / above)
        value *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)
