"""A metric over steps in bounded memory, made of real points only.

Below `capacity` points it is exact. Beyond, points fall into buckets of equal width in x (a power of two that doubles
when the buckets get too many), and a bucket keeps its first, lowest, highest and last point. What a bucket holds is a
function of the points alone, so it does not matter in which portions they arrived.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Floats = npt.NDArray[np.float64]
DEFAULT_CAPACITY = 2048
_SMALL = 16  # up to so many points at once, plain Python is faster than numpy


class Points(Struct, frozen=True, eq=False):
    """Read-only columns: `x` never decreasing, `y` finite, both (N,) float64."""

    x: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Points) and np.array_equal(self.x, other.x) and np.array_equal(self.y, other.y)

    def __hash__(self) -> int:
        return hash((self.x.tobytes(), self.y.tobytes()))


class Bucket(Struct, array_like=True):
    """The first, lowest, highest and last point among those with `x // width == key`. Ties go to the earliest."""

    key: int
    first_x: float
    first_y: float
    low_x: float
    low_y: float
    high_x: float
    high_y: float
    last_x: float
    last_y: float

    @classmethod
    def of_point(cls, key: int, x: float, y: float) -> Bucket:
        return cls(key, x, y, x, y, x, y, x, y)

    def merge(self, later: Bucket) -> None:
        """Take in a bucket of points that all came after this one's."""
        if later.low_y < self.low_y:
            self.low_x, self.low_y = later.low_x, later.low_y
        if later.high_y > self.high_y:
            self.high_x, self.high_y = later.high_x, later.high_y
        self.last_x, self.last_y = later.last_x, later.last_y

    def points(self) -> list[tuple[float, float]]:
        """One to four points in order of x."""
        inner = sorted(((self.low_x, self.low_y), (self.high_x, self.high_y)))
        found = [(self.first_x, self.first_y)]
        for point in (*inner, (self.last_x, self.last_y)):
            if point != found[-1]:
                found.append(point)
        return found


class SavedSeries(Struct):
    """A series as the index stores it: `raw` is little-endian float64 pairs while exact, else `buckets` of `width`."""

    capacity: int
    width: int
    raw: bytes
    buckets: list[Bucket]


class DecimatedSeries:
    """Append-only points (x, y) of one metric. An x before the last one voids what lay beyond it (see the module)."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 16:
            raise ValueError(f"capacity is {capacity}, must be at least 16")
        self.capacity = capacity
        self._x = array("d")  # the exact points, until there are more than `capacity`
        self._y = array("d")
        self._width = 0  # 0: exact
        self._buckets: list[Bucket] = []
        self._cache: Points | None = None
        self._closed: list[float] = []  # x, y, x, y ... of the first `_closed_buckets` buckets, which no longer change
        self._closed_buckets = 0

    @property
    def is_exact(self) -> bool:
        """Whether every point is still there."""
        return self._width == 0

    @property
    def last_x(self) -> float:
        """The last x, -inf where there is no point."""
        if self._width:
            return self._buckets[-1].last_x if self._buckets else -math.inf
        return self._x[-1] if self._x else -math.inf

    def append(self, x: float, y: float | None) -> None:
        """Add a point. A `None` or non-finite y is unknown, and left out."""
        if y is None or not math.isfinite(y):
            return
        if x < self.last_x:
            self.truncate_after(x)
        self._cache = None
        if self._width:
            self._add_bucket(Bucket.of_point(int(x // self._width), x, y))
        else:
            self._x.append(x)
            self._y.append(y)
            if len(self._x) > self.capacity:
                self._start_buckets()

    def extend(self, x: Floats, y: Floats) -> None:
        """Add points: (N,) and (N,) float64; NaN and Inf in `y` are left out."""
        known = np.isfinite(y)
        if not known.all():
            x, y = x[known], y[known]
        if len(x) <= _SMALL or x[0] < self.last_x or bool((x[1:] < x[:-1]).any()):
            for point_x, point_y in zip(x.tolist(), y.tolist(), strict=True):
                self.append(point_x, point_y)
            return
        self._cache = None
        if self._width:
            self._extend_buckets(x, y)
            return
        self._x.frombytes(np.ascontiguousarray(x).tobytes())
        self._y.frombytes(np.ascontiguousarray(y).tobytes())
        if len(self._x) > self.capacity:
            self._start_buckets()

    def truncate_after(self, x: float) -> None:
        """Drop every point beyond `x`: a resume from step `x` makes later points of earlier attempts void."""
        if self.last_x <= x:
            return
        self._cache = None
        while self._x and self._x[-1] > x:
            self._x.pop()
            self._y.pop()
        self._forget_closed()
        while self._buckets and self._buckets[-1].last_x > x:
            bucket = self._buckets.pop()
            kept = [point for point in bucket.points() if point[0] <= x]
            if kept:
                rebuilt = Bucket.of_point(bucket.key, *kept[0])
                for point in kept[1:]:
                    rebuilt.merge(Bucket.of_point(bucket.key, *point))
                self._buckets.append(rebuilt)

    def points(self) -> Points:
        """All kept points, at most `capacity` plus a little, as read-only columns."""
        if self._cache is None:
            if self._width:
                x, y = self._flat_points().reshape(-1, 2).T.copy()
            else:
                x, y = np.array(self._x, dtype=np.float64), np.array(self._y, dtype=np.float64)
            x.setflags(write=False)
            y.setflags(write=False)
            self._cache = Points(x, y)
        return self._cache

    def save(self) -> SavedSeries:
        """What the index stores."""
        raw = np.column_stack((np.array(self._x), np.array(self._y))).astype("<f8").tobytes()
        return SavedSeries(self.capacity, self._width, raw, self._buckets)

    @classmethod
    def load(cls, saved: SavedSeries) -> DecimatedSeries:
        """The series that `save` stored. Raises ValueError on content that `save` cannot have written."""
        series = cls(saved.capacity)
        pairs = np.frombuffer(saved.raw, dtype="<f8").reshape(-1, 2)
        is_power_of_two = saved.width > 0 and saved.width & (saved.width - 1) == 0
        if len(pairs) > saved.capacity or len(saved.buckets) > series._max_buckets():
            raise ValueError("a stored series is over its capacity")
        if (saved.width and not is_power_of_two) or (saved.buckets and not saved.width) or (saved.width and len(pairs)):
            raise ValueError("a stored series is neither exact nor in buckets")
        series._x.frombytes(pairs[:, 0].astype(np.float64).tobytes())
        series._y.frombytes(pairs[:, 1].astype(np.float64).tobytes())
        series._width = saved.width
        series._buckets = saved.buckets
        points = series.points()
        if not (np.isfinite(points.x).all() and np.isfinite(points.y).all() and (np.diff(points.x) >= 0).all()):
            raise ValueError("a stored series is out of order or not finite")
        if any(bucket.key != point[0] // saved.width for bucket in saved.buckets for point in bucket.points()):
            raise ValueError("a stored series has a point outside of its bucket")
        return series

    def _flat_points(self) -> Floats:
        """x, y, x, y ... of all buckets; those before the last are remembered, since a screen asks often."""
        for bucket in self._buckets[self._closed_buckets : -1]:
            for point in bucket.points():
                self._closed.extend(point)
        self._closed_buckets = max(len(self._buckets) - 1, 0)
        last = [number for point in self._buckets[-1].points() for number in point] if self._buckets else []
        return np.array(self._closed + last, dtype=np.float64)

    def _forget_closed(self) -> None:
        self._closed, self._closed_buckets = [], 0

    def _max_buckets(self) -> int:
        return self.capacity // 4

    def _start_buckets(self) -> None:
        x, y = np.array(self._x), np.array(self._y)
        self._width = 2
        del self._x[:], self._y[:]
        self._extend_buckets(x, y)

    def _extend_buckets(self, x: Floats, y: Floats) -> None:
        """Group ordered points by bucket. The width grows first, so that few groups are left to loop over."""
        while _runs(x // self._width) > self._max_buckets():
            self._double_width()
        keys = x // self._width
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))).tolist()
        for begin, end in zip(starts, [*starts[1:], len(x)], strict=True):
            group = y[begin:end]
            low, high = begin + int(group.argmin()), begin + int(group.argmax())
            numbers: Any = (x[begin], y[begin], x[low], y[low], x[high], y[high], x[end - 1], y[end - 1])
            # Not `keys[begin]`: the width may have doubled since; a group still lies within one bucket.
            self._add_bucket(Bucket(int(x[begin] // self._width), *map(float, numbers)))

    def _add_bucket(self, bucket: Bucket) -> None:
        if self._buckets and self._buckets[-1].key == bucket.key:
            self._buckets[-1].merge(bucket)
            return
        self._buckets.append(bucket)
        while len(self._buckets) > self._max_buckets():
            self._double_width()

    def _double_width(self) -> None:
        """Merge neighbours into buckets of twice the width."""
        self._width *= 2
        self._forget_closed()
        merged: list[Bucket] = []
        for bucket in self._buckets:
            bucket.key //= 2
            if merged and merged[-1].key == bucket.key:
                merged[-1].merge(bucket)
            else:
                merged.append(bucket)
        self._buckets = merged


def _runs(keys: Floats) -> int:
    """How many different values follow one another."""
    return int(np.count_nonzero(keys[1:] != keys[:-1])) + 1 if len(keys) else 0


def columns(events: Sequence[Any], name: str) -> Floats:
    """One field of many events as float64; `None` becomes NaN."""
    return np.array([getattr(event, name) for event in events], dtype=np.float64)
