"""Decimated series against a direct computation over all points."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.events.series import DecimatedSeries, Points, SavedSeries


def filled(x: list[float], y: list[float], capacity: int) -> DecimatedSeries:
    series = DecimatedSeries(capacity)
    series.extend(np.array(x, dtype=float), np.array(y, dtype=float))
    return series


def as_pairs(points: Points) -> list[tuple[float, float]]:
    return list(zip(points.x.tolist(), points.y.tolist(), strict=True))


def reference(pairs: list[tuple[float, float]], width: int) -> set[tuple[float, float]]:
    """First, lowest, highest, last of every bucket, computed the plain way."""
    kept: set[tuple[float, float]] = set()
    for key in {x // width for x, _ in pairs}:
        inside = [pair for pair in pairs if pair[0] // width == key]
        kept |= {inside[0], inside[-1], min(inside, key=lambda p: p[1]), max(inside, key=lambda p: p[1])}
    return kept


def test_exact_up_to_capacity() -> None:
    series = DecimatedSeries(16)
    pairs = [(float(step), math.sin(step)) for step in range(16)]
    for x, y in pairs:
        series.append(x, y)
    assert series.is_exact
    assert as_pairs(series.points()) == pairs
    series.append(16, 0.0)
    assert not series.is_exact


def test_unknown_values_are_left_out() -> None:
    series = DecimatedSeries(16)
    for x, y in enumerate([1.0, None, math.nan, math.inf, -math.inf, 2.0]):
        series.append(x, y)
    assert as_pairs(series.points()) == [(0, 1.0), (5, 2.0)]


@pytest.mark.parametrize("n", [65, 100, 4097, 50_000])
def test_buckets_keep_first_lowest_highest_and_last(n: int) -> None:
    rng = random.Random(n)
    pairs = [(float(step), rng.gauss(0, 1)) for step in range(1, n + 1)]
    series = filled([x for x, _ in pairs], [y for _, y in pairs], 64)
    points = series.points()
    assert len(points) <= 64
    assert set(as_pairs(points)) == reference(pairs, series._width)
    assert (np.diff(points.x) >= 0).all()
    assert points.y.min() == min(y for _, y in pairs)
    assert points.y.max() == max(y for _, y in pairs)
    assert (points.x[0], points.x[-1]) == (1.0, n)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 600),
    cuts=st.lists(st.integers(0, 600), max_size=6),
    gap=st.sampled_from([1, 3, 1000]),
)
def test_portions_do_not_matter(seed: int, n: int, cuts: list[int], gap: int) -> None:
    rng = random.Random(seed)
    x, pairs = 0, []
    for _ in range(n):
        x = x + rng.randint(0, gap) if rng.random() > 0.01 else rng.randint(0, x)
        pairs.append((float(x), rng.choice([math.nan, rng.gauss(0, 1), 1.0])))
    one_by_one, in_portions = DecimatedSeries(32), DecimatedSeries(32)
    for point in pairs:
        one_by_one.append(*point)
    bounds = sorted({0, n, *(cut for cut in cuts if cut < n)})
    for begin, end in pairwise(bounds):
        part = np.array(pairs[begin:end]).reshape(-1, 2)
        in_portions.extend(part[:, 0], part[:, 1])
    assert one_by_one.save() == in_portions.save()
    assert set(as_pairs(one_by_one.points())) <= set(pairs)


@pytest.mark.parametrize("n", [10, 1000])
def test_truncation_keeps_what_lies_up_to_x(n: int) -> None:
    for cut in (-1, 0, 1, n // 3, n - 1, n, n + 5):
        series = filled(list(range(n)), [math.sin(step) for step in range(n)], 32)
        before = as_pairs(series.points())
        series.truncate_after(cut)
        assert as_pairs(series.points()) == [pair for pair in before if pair[0] <= cut]
        series.append(cut + 1, 5.0)
        assert as_pairs(series.points())[-1] == (cut + 1, 5.0)


def test_an_x_that_runs_back_voids_what_lay_beyond() -> None:
    series = filled([1, 2, 3, 4], [1, 2, 3, 4], 16)
    series.append(3, 9.0)
    assert as_pairs(series.points()) == [(1, 1), (2, 2), (3, 3), (3, 9)]


def test_memory_is_bounded_and_far_apart_points_are_fine() -> None:
    series = DecimatedSeries(32)
    x = np.arange(1, 300_001, dtype=float)
    series.extend(x, np.cos(x))
    series.append(2.0**52, 1.0)
    assert len(series._buckets) <= 8
    assert len(series._x) == 0
    assert series.points().x[-1] == 2.0**52


def test_points_are_frozen_and_shared_until_something_changes() -> None:
    series = filled([1, 2], [3, 4], 16)
    points = series.points()
    assert series.points() is points
    with pytest.raises(ValueError, match="read-only"):
        points.y[0] = 0.0
    series.append(3, 5.0)
    assert len(points) == 2
    assert len(series.points()) == 3
    assert points == filled([1, 2], [3, 4], 16).points()
    assert points != series.points()


@pytest.mark.parametrize("n", [0, 5, 500])
def test_save_and_load(n: int) -> None:
    series = filled(list(range(n)), [step % 7 for step in range(n)], 32)
    stored = msgspec.msgpack.encode(series.save())
    loaded = DecimatedSeries.load(msgspec.msgpack.decode(stored, type=SavedSeries))
    for copy in (series, loaded):
        copy.append(n + 1, 2.0)
    assert loaded.save() == series.save()
    assert loaded.points() == series.points()


def test_load_refuses_what_save_cannot_have_written() -> None:
    def damaged(**changes: object) -> SavedSeries:
        stored = msgspec.msgpack.encode(filled(list(range(500)), list(range(500)), 32).save())
        return msgspec.structs.replace(msgspec.msgpack.decode(stored, type=SavedSeries), **changes)

    good = damaged()
    swapped = damaged()
    swapped.buckets[0], swapped.buckets[1] = swapped.buckets[1], swapped.buckets[0]
    infinite = damaged()
    infinite.buckets[0].high_y = math.inf
    moved = damaged()
    moved.buckets[0].key += 1
    raw_backwards = SavedSeries(32, 0, np.array([[2.0, 0.0], [1.0, 0.0]]).tobytes(), [])
    bad = [swapped, infinite, moved, raw_backwards]
    bad += [damaged(width=0), damaged(width=3), damaged(width=-2), damaged(raw=b"x"), damaged(raw=b"\0" * 16)]
    bad += [damaged(capacity=16), damaged(capacity=0), damaged(buckets=good.buckets * 5)]
    for saved in bad:
        with pytest.raises(ValueError):
            DecimatedSeries.load(saved)
    DecimatedSeries.load(good)
