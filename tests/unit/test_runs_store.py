"""Listing and finding runs, among things that are no runs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.errors import RunError
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.label import Label, write_label
from gpuworkbench.runs.store import list_runs, resolve_run
from gpuworkbench.text import safe_text
from tests.unit.run_helpers import step, write_events

IDS = ["20250101-000000-quickstart-aaaa", "20250102-000000-quickstart-bbbb", "20250102-000000-xl-cccc"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    directory = tmp_path / "runs"
    for run_id in IDS:
        create_run(directory, run_id, b"", b'preset = "quickstart"\nis_cpu_twin = true\n[train]\nmax_steps = 60\n')
    return directory


def hostile_entries(runs: Path) -> None:
    (runs / "README.md").write_text("what lands here")
    os.mkfifo(runs / "fifo")
    (runs / "half").mkdir()
    (runs / ".tmp-1-x").mkdir()
    (runs / ".tmp-1-x" / "run.toml").touch()
    (runs / "link").symlink_to(runs / IDS[0])
    (runs / "loop").symlink_to(runs / "loop")
    (runs / "fifo-run").mkdir()
    os.mkfifo(runs / "fifo-run" / "run.toml")
    (runs / "linked-config").mkdir()
    (runs / "linked-config" / "run.toml").symlink_to("/etc/passwd")
    os.mkdir(os.fsencode(runs) + b"/bad\xff\x1b[31m")


def test_newest_first(runs: Path) -> None:
    hostile_entries(runs)
    paths = resolve_run(runs, IDS[0])
    write_label(paths, Label(name="good\x1b one"))
    write_events(paths, [step(60, loss=1.25), {"type": "run_finished", "status": "completed", "step": 60}])
    found = list_runs(runs)
    assert [info.run_id for info in found] == [IDS[2], IDS[1], IDS[0]]
    info = found[-1]
    assert (info.preset, info.status, info.step, info.max_steps, info.last_loss) == (
        "quickstart",
        "completed",
        60,
        60,
        1.25,
    )
    assert (info.name, info.is_cpu_twin, info.path) == ("good␛ one", True, str(runs / IDS[0]))
    as_json = msgspec.json.decode(msgspec.json.encode(found))
    assert {"run_id", "path", "preset", "status", "step", "max_steps", "last_loss"} <= set(as_json[0])
    assert as_json[0]["step"] is None


def test_names_people_chose_are_sorted_by_their_files_time(runs: Path) -> None:
    create_run(runs, "baseline", b"", b"")
    assert list_runs(runs)[0].run_id == "baseline"
    os.utime(runs / "baseline" / "run.toml", (0, 0))
    assert list_runs(runs)[-1].run_id == "baseline"


def test_no_directory_has_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "missing") == []
    (tmp_path / "file").touch()
    assert list_runs(tmp_path / "file") == []


@pytest.mark.parametrize(
    "config", [b"\xff", b"[" * 10_000, b"preset = 3\ntrain = 4", b"[train]\nmax_steps = 'x'", b"a" * 2_000_000]
)
def test_a_damaged_config_is_still_listed(tmp_path: Path, config: bytes) -> None:
    create_run(tmp_path, "run", b"", config)
    (info,) = list_runs(tmp_path)
    assert (info.preset, info.max_steps) == ("", None)


def test_by_id_prefix_and_path(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_run(runs, IDS[1]).root == runs / IDS[1]
    assert resolve_run(runs, "20250101").root == runs / IDS[0]
    assert resolve_run(runs, str(runs / IDS[2])).root == runs / IDS[2]
    assert resolve_run(runs, f"{runs}/{IDS[2]}/").root == runs / IDS[2]
    monkeypatch.chdir(runs / IDS[0])
    assert resolve_run(runs, ".").root == runs / IDS[0]
    create_run(runs, IDS[0] + "-more", b"", b"")
    assert resolve_run(runs, IDS[0]).root == runs / IDS[0]  # an exact id wins over being a prefix


def test_ambiguous_and_missing(runs: Path) -> None:
    with pytest.raises(RunError, match=f"any of 2 runs \\({IDS[2]}, {IDS[1]}\\)"):
        resolve_run(runs, "20250102")
    with pytest.raises(RunError) as caught:
        resolve_run(runs, "20250101-000000-quickstart-aaab")
    assert f"did you mean {IDS[0]}?" in caught.value.line()
    with pytest.raises(RunError, match="there is no run"):
        resolve_run(runs.parent / "nowhere", "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "..",
        ".",
        "../runs",
        "/",
        "/etc/passwd",
        "~nobody-here/x",
        "a\0b",
        "a/\0",
        "\x1b[31m",
        "x" * 5000,
        "/" + "x" * 5000,
        "loop/",
        "./loop",
        "./fifo",
        "./fifo-run",
        "./linked-config",
        "\udcff",
        "\udcff/",
        "link",
    ],
)
def test_hostile_names_are_one_line(runs: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile_entries(runs)
    monkeypatch.chdir(runs)
    with pytest.raises(RunError) as caught:
        resolve_run(runs, text)
    assert caught.value.line().isprintable()


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_gives_a_run_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    line = ""
    try:
        resolve_run(tmp_path_factory.getbasetemp(), text)
    except RunError as error:
        line = error.line()
    assert safe_text(line) == line
