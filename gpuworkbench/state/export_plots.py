"""A panel's series as files in the run's `exports/`: a picture, the drawn points, and every point of the log.

SVG and CSV always; PNG where this machine has a font for its labels.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gpuworkbench.errors import RunError
from gpuworkbench.events import schema
from gpuworkbench.events.fold import OFFLOAD_SERIES
from gpuworkbench.events.reader import EventReader
from gpuworkbench.events.series import Floats, Points
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes
from gpuworkbench.io.atomic import temporary_path
from gpuworkbench.io.files import write_all
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.curves import By, curve, on_axis
from gpuworkbench.state.png import NO_FONT, write_png
from gpuworkbench.state.run_state import RunState
from gpuworkbench.state.svg_plot import Line, svg_plot
from gpuworkbench.text import safe_text

CSV_HEADER = "series,step,tokens,time_s,value\n"
LABELS: Mapping[str, tuple[str, str]] = {
    "loss": ("training loss", "loss (nats per token)"),
    "val_loss": ("validation loss", "loss (nats per token)"),
    "predicted_loss": ("predicted loss (not measured)", "loss (nats per token)"),
    "grad_norm": ("gradient norm before clipping", "norm"),
    "lr": ("learning rate", "learning rate"),
    "tokens_per_s": ("tokens per second", "tokens per second"),
    "step_time_s": ("step time", "seconds"),
    "allocated_bytes": ("allocated on the card", "bytes"),
    "reserved_bytes": ("reserved on the card", "bytes"),
    "host_rss_bytes": ("resident on the host", "bytes"),
    OFFLOAD_SERIES: ("transfers between card and host", "bytes per second"),
}
POINTS = frozenset({"val_loss", "predicted_loss"})  # drawn as points: few, and not of every step


def export_plot(
    paths: RunPaths,
    state: RunState,
    name: str,
    series: Sequence[str],
    *,
    by: By = "step",
    smoothing: float = 0.0,
    is_log: bool = False,
    files: Files = REAL_FILES,
) -> list[Path]:
    """Write `exports/<name>-step-N.svg`, `.csv`, `-full.csv` and perhaps `.png`; returns their paths, picture first.

    `series` are names of `state.series`; the first decides the unit of the picture, and those of other units are in
    the tables only. Raises RunError where nothing is there to write, or the directory cannot be written.
    """
    known = [one for one in series if len(state.series[one])]
    if not known:
        raise RunError(f"{paths.run_id} has no {name} to export yet", "wait for its first steps")
    stem = f"{name}-step-{state.step:08d}"
    lines = []
    for one in known:
        if LABELS[one][1] == LABELS[known[0]][1]:
            points = curve(state.series, one, by, 0.0 if one in POINTS else smoothing)
            label = LABELS[one][0] + (f", EMA {smoothing:g}" if smoothing and one not in POINTS else "")
            lines.append(Line(label, points.x, points.y, one in POINTS))
    picture = svg_plot(paths.run_id, lines, LABELS[known[0]][1], by, is_log=is_log)
    try:
        paths.exports.mkdir(exist_ok=True)
        svg, csv = paths.exports / f"{stem}.svg", paths.exports / f"{stem}.csv"
        atomic_write_bytes(svg, picture.encode(), files)
        rows = b"".join(csv_rows(one, state.series[one], state.series) for one in known)
        atomic_write_bytes(csv, CSV_HEADER.encode() + rows, files)
        full = paths.exports / f"{stem}-full.csv"
        _write_full(full, paths.events, known, state.series, files)
    except OSError as error:
        raise RunError(f"{paths.exports} cannot be written: {error.strerror or error}", "check the disk") from None
    png = write_png(svg)
    return [svg, csv, full, *([png] if png else [])]


def export_lines(
    directory: Path, stem: str, title: str, lines: Sequence[Line], by: By, *, is_log: bool, files: Files = REAL_FILES
) -> list[Path]:
    """Curves of several runs as `stem`.svg, .csv (`curve,<axis>,loss`) and perhaps .png. Raises RunError."""
    picture = svg_plot(title, lines, LABELS["loss"][1], by, is_log=is_log)
    rows = [f"curve,{by},loss\n"]
    for line in lines:
        label = '"' + safe_text(line.label).replace('"', '""') + '"'
        rows += [f"{label},{x:.12g},{y!r}\n" for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)]
    svg, csv = directory / f"{stem}.svg", directory / f"{stem}.csv"
    try:
        directory.mkdir(exist_ok=True)
        atomic_write_bytes(svg, picture.encode(), files)
        atomic_write_bytes(csv, "".join(rows).encode(), files)
    except OSError as error:
        raise RunError(f"{directory} cannot be written: {error.strerror or error}", "check the disk") from None
    png = write_png(svg)
    return [svg, csv, *([png] if png else [])]


def written_words(written: Sequence[Path]) -> str:
    """What an export wrote, in one line; and why there is no PNG, where there is none."""
    first = written[0]
    kinds = ", ".join(path.name.removeprefix(first.stem) for path in written)
    return f"{first.with_suffix('')}: {kinds}" + ("" if written[-1].suffix == ".png" else f" ({NO_FONT})")


def csv_rows(name: str, points: Points, scale: Mapping[str, Points]) -> bytes:
    """Points as lines of CSV; a place that is not known is empty."""
    columns = (points.x, on_axis(scale, points.x, "tokens"), on_axis(scale, points.x, "time"), points.y)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return "".join(
        f"{name},{step:.0f},{_known(tokens, 0)},{_known(seconds, 3)},{value!r}\n"
        for step, tokens, seconds, value in rows
    ).encode()


def _known(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def standing_points(log: Path, names: Sequence[str]) -> Iterator[tuple[str, Points]]:
    """Every point of these series that stands, chunk by chunk: what a resume took back is left out. Raises RunError."""
    voids = _voids(log)
    reader = EventReader(log)
    try:
        while lines := reader.poll():
            yield from _of_chunk(lines, names, voids)
    finally:
        reader.close()


def _voids(log: Path) -> list[tuple[int, int]]:
    """(seq, step) of every resume: what came before `seq` and lies beyond `step` is void. Steps never decreasing."""
    reader = EventReader(log)
    found: list[tuple[int, int]] = []
    try:
        while events := reader.poll():
            found += [(event.seq, event.from_step) for event in events if isinstance(event, schema.RunResumed)]
    finally:
        reader.close()
    for index in range(len(found) - 2, -1, -1):
        found[index] = (found[index][0], min(found[index][1], found[index + 1][1]))
    return found


def _of_chunk(
    events: Sequence[schema.AnyEvent], names: Sequence[str], voids: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, Points]]:
    columns: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    seqs = [seq for seq, _ in voids]
    for event in events:
        index = bisect.bisect_right(seqs, event.seq)
        if index < len(voids) and event.step > voids[index][1]:
            continue
        for name in names:
            value = _value(event, name)
            if value is not None:
                columns[name][0].append(event.step)
                columns[name][1].append(value)
    for name, (x, y) in columns.items():
        if x:
            steps: Floats = np.array(x, dtype=np.float64)
            yield name, Points(steps, np.array(y, dtype=np.float64))


def _value(event: schema.AnyEvent, name: str) -> float | None:
    if isinstance(event, schema.Eval):
        return event.loss if name == "val_loss" and event.split != "train" else None
    if isinstance(event, schema.Prediction):
        return event.predicted_loss if name == "predicted_loss" else None
    if isinstance(event, schema.Offload):
        return event.num_bytes / event.duration_s if name == OFFLOAD_SERIES and event.duration_s > 0 else None
    if isinstance(event, schema.Step | schema.Memory):
        value: float | None = getattr(event, name, None)
        return value
    return None


def _write_full(target: Path, log: Path, names: Sequence[str], scale: Mapping[str, Points], files: Files) -> None:
    """All points of the log as CSV, in bounded memory; the file appears when it is whole."""
    temporary = temporary_path(target)
    try:
        fd = files.open_write(temporary)
        try:
            write_all(files, fd, CSV_HEADER.encode())
            for name, points in standing_points(log, names):
                write_all(files, fd, csv_rows(name, points, scale))
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
