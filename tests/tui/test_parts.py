"""The small parts: text as pictures, the plot adapter, the mailbox of one, the tables' columns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.gpu.card import Card
from gpuworkbench.tui.watch import Watcher
from gpuworkbench.tui.widgets.glyphs import bar, fit_parts, sparkline
from gpuworkbench.tui.widgets.machine import card_rows
from gpuworkbench.tui.widgets.plot import Curve, _decimated, draw, nice_ticks, tick_label
from gpuworkbench.tui.widgets.run_table import PADDING, column_widths
from gpuworkbench.units import GIB

GREY = (128, 128, 128)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "░░░░"), (1, "████"), (0.5, "██░░"), (1 / 32, "▏░░░"), (None, "░░░░"), (7, "████"), (-1, "░░░░")],
)
def test_bars_are_exact_to_an_eighth(share: float | None, text: str) -> None:
    assert bar(share, 4) == text


@given(st.floats(-2, 2), st.integers(0, 60))
def test_bars_keep_their_width(share: float, width: int) -> None:
    assert len(bar(share, width)) == width


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1, 3, 3], 2) == "▁█"
    assert sparkline([5, 5, 5], 8) == "▁▁▁"
    assert sparkline([], 8) == sparkline([float("nan")], 8) == sparkline([1.0], 0) == ""
    assert sparkline([1, float("nan"), 2], 8) == "▁█"


@given(st.lists(st.floats(-1e300, 1e300), max_size=200), st.integers(0, 40))
def test_sparklines_keep_within_their_width(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


def test_parts_go_by_their_number_where_room_is_short() -> None:
    parts = [(0, "aaa"), (2, "bbb"), (1, "ccc")]
    assert fit_parts(parts, 13) == ["aaa", "bbb", "ccc"]
    assert fit_parts(parts, 12) == ["aaa", "ccc"]
    assert fit_parts(parts, 1) == ["aaa"]


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(1, 12))
def test_ticks_are_ordered_and_inside(low: float, span: float, count: int) -> None:
    high = low + span
    ticks = nice_ticks(low, high, count)
    assert ticks == sorted(ticks)
    assert len(ticks) <= 2 * count + 2
    slack = span * 1e-6 + abs(low) * 1e-9
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_ticks_and_labels_are_round() -> None:
    assert nice_ticks(0, 700, 7) == [0, 100, 200, 300, 400, 500, 600, 700]
    assert nice_ticks(2.2, 8.4, 3) == [4, 6, 8]
    assert [tick_label(x) for x in (0, 2.5, 1500, 20_000, 3e6, 3e-4)] == ["0", "2.5", "1.5k", "20k", "3M", "3e-04"]


def test_decimation_keeps_the_ends_and_the_extremes() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=100_000)
    y[31_415], y[92_653] = 50.0, -50.0
    thin = _decimated(Curve(np.arange(100_000.0), y, GREY), 400)
    assert len(thin.x) <= 402
    assert (thin.x[0], thin.x[-1]) == (0.0, 99_999.0)
    assert (thin.y.max(), thin.y.min()) == (50.0, -50.0)
    assert (np.diff(thin.x) > 0).all()


@pytest.mark.parametrize("size", [(16, 4), (60, 12), (137, 30)])
@pytest.mark.parametrize("log_y", [False, True])
def test_plots_have_the_size_that_was_asked_for(size: tuple[int, int], log_y: bool) -> None:
    x = np.arange(1.0, 300.0)
    curves = [Curve(x, 3 + np.sin(x / 20), GREY), Curve(x[::50], x[::50] / 100, GREY, "●")]
    lines = draw(curves, *size, axis_color=GREY, log_y=log_y).text.plain.split("\n")
    assert len(lines) == size[1]
    assert {len(line) for line in lines} == {size[0]}
    assert any("●" in line for line in lines)


@pytest.mark.parametrize(
    "y", [[], [float("nan")], [1.0], [2.0, 2.0], [1e308, -1e308], [float("inf"), 1.0], [0.0, 0.0], [-1.0, -2.0]]
)
@pytest.mark.parametrize("log_y", [False, True])
def test_plots_take_any_numbers(y: list[float], log_y: bool) -> None:
    curve = Curve(np.arange(float(len(y))), np.array(y), GREY)
    assert len(draw([curve], 40, 8, axis_color=GREY, log_y=log_y).text.plain.split("\n")) <= 8


@given(st.integers(0, 300))
def test_the_columns_of_runs_fit_their_table(width: int) -> None:
    columns = column_widths(width)
    assert list(columns)[:2] == ["run", "status"]
    if width >= 60:
        assert sum(columns.values()) + PADDING * len(columns) <= width - 2
    assert ("course" in columns) == (width >= 81)  # below, a whole run id matters more than its curve


def test_a_slow_reader_gets_the_newest_and_is_told_once() -> None:
    told: list[int] = []
    produced = threading.Event()

    def source(stop: threading.Event) -> Iterator[int]:
        yield from range(100)
        produced.set()
        stop.wait(10)

    watcher = Watcher(source, lambda: told.append(1), "test")
    watcher.start()
    assert produced.wait(10)
    assert (watcher.take(), watcher.take()) == (99, None)
    assert len(told) == 1
    watcher.stop()
    watcher.join(10)


def test_a_watcher_ends_when_its_app_has_gone() -> None:
    ended = threading.Event()

    def source(stop: threading.Event) -> Iterator[int]:
        try:
            while not stop.is_set():
                yield 1
                time.sleep(0.001)
        finally:
            ended.set()

    def gone() -> None:
        raise RuntimeError("Event loop is closed")

    watcher = Watcher(source, gone, "test")
    watcher.start()
    assert ended.wait(10)
    watcher.join(10)


@pytest.mark.parametrize("width", [78, 138, 198])
def test_several_cards_stand_in_columns(width: int) -> None:
    cards = [
        Card(index=0, name="NVIDIA GeForce RTX 5080", memory_total_bytes=16 * GIB, memory_used_bytes=2 * GIB),
        Card(index=1, name="NVIDIA RTX 4060 Ti", memory_total_bytes=8 * GIB, memory_used_bytes=6 * GIB),
    ]
    rows = card_rows(cards, width)
    first, second = ("".join(part if isinstance(part, str) else part[0] for part in row) for row in rows)
    assert first.startswith("0  RTX 5080    ")
    assert second.startswith("1  RTX 4060 Ti ")
    assert first.index("2.00 GiB") == second.index("6.00 GiB")
    assert max(len(first), len(second)) <= width


def test_many_cards_take_four_rows() -> None:
    cards = [Card(index=index, name="H200", memory_free_bytes=GIB) for index in range(8)]
    assert len(card_rows(cards[:4], 78)) == 4
    rows = card_rows(cards, 78)
    assert len(rows) == 4
    assert rows[-1][0][0] == "5 more cards, 5.00 GiB free on them; h lists them"
