"""How plots are looked at: which axis, which stretch of it, how smooth, and where the cursor stands.

One frozen value is shared by every panel of a screen, so that all of them show the same stretch and the same moment.
`window` and `cursor` are in the units of the axis (steps, tokens, seconds).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpuworkbench.state.curves import AXES, SMOOTHING, By

Range = tuple[float, float]
MIN_SHARE = 1e-6  # of the whole, the closest that zooming comes
COLUMNS = 100  # moves of the cursor from one end of what is shown to the other


@dataclass(frozen=True, slots=True)
class PlotAxis:
    """See the module. `window` None: everything, growing with the run. `cursor` None: the newest values."""

    by: By = "step"
    window: Range | None = None
    cursor: float | None = None
    smoothing: float = 0.0
    is_log: bool = False

    def shown(self, full: Range) -> Range:
        """The stretch to draw, where `full` is all there is."""
        return full if self.window is None else self.window

    def zoomed(self, factor: float, full: Range, center: float | None = None) -> PlotAxis:
        """`factor` times as wide a stretch around `center` (default: the cursor, else the middle), within `full`."""
        low, high = self.shown(full)
        if center is None:
            inside = self.cursor is not None and low <= self.cursor <= high
            center = self.cursor if inside and self.cursor is not None else (low + high) / 2
        smallest = max((full[1] - full[0]) * MIN_SHARE, 2.0 if self.by == "step" else 0.0)
        width = max((high - low) * factor, smallest)
        if width >= full[1] - full[0]:
            return replace(self, window=None)
        share = (center - low) / (high - low) if high > low else 0.5
        return replace(self, window=_inside(center - share * width, width, full))

    def panned(self, distance: float, full: Range) -> PlotAxis:
        """The stretch moved by `distance` in units of the axis, not beyond `full`; nothing where all is shown."""
        if self.window is None:
            return self
        low, high = self.window
        return replace(self, window=_inside(low + distance, high - low, full))

    def scrubbed(self, moves: int, full: Range) -> PlotAxis:
        """The cursor `moves` columns on; it begins at the end. What is shown follows it."""
        low, high = self.shown(full)
        size = (high - low) / COLUMNS
        if self.by == "step":
            size = max(round(size), 1)
        cursor = (full[1] if self.cursor is None else self.cursor) + moves * size
        return self.with_cursor(min(max(cursor, full[0]), full[1]), full)

    def with_cursor(self, cursor: float | None, full: Range) -> PlotAxis:
        """The cursor at a place; the window moves so that it is seen."""
        if cursor is None or self.window is None or self.window[0] <= cursor <= self.window[1]:
            return replace(self, cursor=cursor)
        width = self.window[1] - self.window[0]
        return replace(self, cursor=cursor, window=_inside(cursor - width / 2, width, full))

    def next_axis(self, convert: Callable[[float, By, By], float]) -> PlotAxis:
        """The next of steps, tokens and time; `convert(x, old, new)` takes cursor and window along."""
        new = AXES[(AXES.index(self.by) + 1) % len(AXES)]
        places = [convert(x, self.by, new) for x in (self.cursor, *(self.window or ())) if x is not None]
        if any(math.isnan(x) for x in places):  # the run has told no tokens or times yet
            return replace(self, by=new, window=None, cursor=None)
        cursor = places.pop(0) if self.cursor is not None else None
        return replace(self, by=new, window=(places[0], places[1]) if self.window else None, cursor=cursor)

    def smoother(self, direction: int) -> PlotAxis:
        """The next stronger (1) or weaker (-1) smoothing."""
        index = SMOOTHING.index(self.smoothing) + direction
        return replace(self, smoothing=SMOOTHING[min(max(index, 0), len(SMOOTHING) - 1)])

    def with_log(self, is_log: bool) -> PlotAxis:
        """A logarithmic axis, or a plain one."""
        return replace(self, is_log=is_log)

    def whole(self) -> PlotAxis:
        """All there is, without a cursor."""
        return replace(self, window=None, cursor=None)

    @property
    def words(self) -> str:
        """What is not plain: `by tokens, EMA 0.9, log axis`."""
        parts = [] if self.by == "step" else [f"by {self.by}"]
        if self.smoothing:
            parts.append(f"EMA {self.smoothing:g}")
        if self.is_log:
            parts.append("log axis")
        if self.window is not None:
            parts.append("zoomed")
        return ", ".join(parts)


def _inside(low: float, width: float, full: Range) -> Range:
    low = max(min(low, full[1] - width), full[0])
    return low, low + width
