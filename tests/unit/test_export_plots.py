"""Exported plots: the CSV against the log, the SVG as XML with the same points, and disks that refuse."""

from __future__ import annotations

import csv
import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from gpuworkbench.errors import RunError
from gpuworkbench.state import png
from gpuworkbench.state.compare import load
from gpuworkbench.state.export_plots import export_lines, export_plot, standing_points, written_words
from gpuworkbench.state.png import find_font, write_png
from gpuworkbench.state.svg_plot import HEIGHT, WIDTH, Line, svg_plot
from tests.fixtures.event_logs import LogBuilder
from tests.fixtures.faulty_files import FaultyFiles
from tests.fixtures.recorded_run import HOSTILE, card_run, completed_run, loss_at, new_run

SVG = "{http://www.w3.org/2000/svg}"
LOSS = ("loss", "val_loss", "predicted_loss")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(png, "find_font", lambda: None)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_both_tables_have_every_point_of_a_short_run(tmp_path: Path) -> None:
    paths = completed_run(tmp_path)
    svg, drawn, full = export_plot(paths, load(paths).state, "loss", LOSS)
    assert svg.parent == paths.exports
    assert [path.name for path in (svg, drawn, full)] == [
        "loss-step-00000400.svg",
        "loss-step-00000400.csv",
        "loss-step-00000400-full.csv",
    ]
    assert sorted(map(str, rows(drawn))) == sorted(map(str, rows(full)))
    train = [row for row in rows(full) if row["series"] == "loss"]
    assert [float(row["value"]) for row in train] == [loss_at(step) for step in range(1, 401)]
    assert (train[9]["step"], train[9]["tokens"], train[9]["time_s"]) == ("10", "10240", "2.000")
    assert [row["step"] for row in rows(full) if row["series"] == "val_loss"] == ["100", "200", "300", "400"]


def test_the_full_table_is_thinned_by_nothing_and_leaves_out_what_a_resume_took_back(tmp_path: Path) -> None:
    paths = new_run(tmp_path, "long")
    log = LogBuilder().start()
    for step in range(1, 4001):
        log.tick(0.1).step(step, 1.0 / step)
    log.resume(1000)
    for step in range(1001, 3001):
        log.tick(0.1).step(step, 5.0)
    log.resume(2500).tick(0.1).step(2501, 7.0)
    log.write(paths.events)
    state = load(paths).state
    _, drawn, full = export_plot(paths, state, "loss", LOSS)
    values = {int(row["step"]): float(row["value"]) for row in rows(full)}
    assert len(rows(full)) == len(values) == 2501
    assert (values[1000], values[1001], values[2500], values[2501]) == (1 / 1000, 5.0, 5.0, 7.0)
    assert len(rows(drawn)) == len(state.series["loss"]) < 2501


def test_the_reader_of_points_and_the_series_agree(tmp_path: Path) -> None:
    paths = card_run(tmp_path)
    series = load(paths).state.series
    for name in ("loss", "predicted_loss", "allocated_bytes", "lr"):
        found = [points for _, points in standing_points(paths.events, (name,))]
        assert np.concatenate([points.x for points in found]).tolist() == series[name].x.tolist()
        assert np.concatenate([points.y for points in found]).tolist() == series[name].y.tolist()


@pytest.mark.parametrize("by", ["step", "tokens", "time"])
@pytest.mark.parametrize("is_log", [False, True])
def test_the_picture_is_xml_with_a_line_and_points(tmp_path: Path, by: str, is_log: bool) -> None:
    paths = card_run(tmp_path)
    svg = export_plot(paths, load(paths).state, "loss", LOSS, by=by, smoothing=0.9, is_log=is_log)[0]  # type: ignore[arg-type]
    root = ET.fromstring(svg.read_text())
    lines = [path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("fill") == "none"]
    curve = max(lines, key=len)
    heights = [float(pair.split()[1]) for pair in curve[1:].split("L")]
    assert len(heights) == 160
    assert heights[0] < heights[-1], "the loss falls, and y grows downwards in SVG"
    text = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "predicted loss (not measured)" in text
    assert "EMA 0.9" in text


def test_the_picture_takes_any_text_and_any_number() -> None:
    bad = Line(HOSTILE, np.arange(5.0), np.array([np.nan, np.inf, -1.0, 0.0, 1e300]))
    for is_log in (False, True):
        ET.fromstring(svg_plot(HOSTILE, [bad, Line("one", np.zeros(1), np.ones(1))], HOSTILE, is_log=is_log))
    ET.fromstring(svg_plot("empty", [], "y"))


def test_nothing_to_export_and_full_disks_are_one_line(tmp_path: Path) -> None:
    empty = new_run(tmp_path, "empty")
    with pytest.raises(RunError, match="no loss to export"):
        export_plot(empty, load(empty).state, "loss", LOSS)
    assert not empty.exports.exists()
    paths = completed_run(tmp_path)
    state = load(paths).state
    counter = FaultyFiles()
    export_plot(paths, state, "loss", LOSS, files=counter)
    for path in paths.exports.iterdir():
        path.unlink()
    for at in range(1, counter.count + 1, 3):
        with pytest.raises(RunError, match="cannot be written"):
            export_plot(paths, state, "loss", LOSS, files=FaultyFiles(fail_at=at, torn=False))
    assert not [path for path in paths.exports.iterdir() if path.name.startswith(".")]


def test_several_runs_in_one_picture(tmp_path: Path) -> None:
    lines = [Line('a "quoted", name', np.arange(3.0), np.ones(3)), Line("b", np.arange(2.0), np.zeros(2), True)]
    svg, table = export_lines(tmp_path / "exports", "compare", "two", lines, "tokens", is_log=False)
    assert [row["curve"] for row in rows(table)] == ['a "quoted", name'] * 3 + ["b"] * 2
    ET.fromstring(svg.read_text())


@pytest.mark.skipif(find_font() is None, reason="this machine has no font")
def test_a_png_of_twice_the_size_with_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    paths = completed_run(tmp_path)
    written = export_plot(paths, load(paths).state, "loss", LOSS)
    picture = written[-1].read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (2 * WIDTH, 2 * HEIGHT)
    bare = tmp_path / "bare.svg"
    bare.write_text(re.sub(r"<text.*?</text>", "", written[0].read_text()))
    without = write_png(bare)
    assert without is not None
    assert without.read_bytes() != picture, "the labels are not drawn"
    assert written_words(written).endswith(": .svg, .csv, -full.csv, .png")


def test_without_a_font_there_is_no_png_and_a_word_why(tmp_path: Path) -> None:
    paths = completed_run(tmp_path)
    written = export_plot(paths, load(paths).state, "loss", LOSS)
    assert [path.suffix for path in written] == [".svg", ".csv", ".csv"]
    assert written_words(written).endswith("fonts-dejavu-core)")
    assert find_font([tmp_path]) is None


def test_a_picture_that_cannot_be_drawn_costs_the_png_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "find_font", lambda: (tmp_path / "no.ttf", "No Such Font"))
    broken = tmp_path / "broken.svg"
    broken.write_text("<svg")
    assert write_png(broken) is None
    assert [path.name for path in tmp_path.iterdir()] == ["broken.svg"]


def test_steps_of_an_unknown_rate_have_empty_cells(tmp_path: Path) -> None:
    paths = new_run(tmp_path, "val-only")
    LogBuilder().start().eval(0, 9.0).write(paths.events)
    drawn = export_plot(paths, load(paths).state, "loss", LOSS)[1]
    assert drawn.read_text().splitlines()[1] == "val_loss,0,,,9.0"
