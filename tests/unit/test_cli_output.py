"""The command line: what is printed, as JSON and as tables."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from gpuworkbench import cli
from gpuworkbench.commands.output import print_json, table_lines
from gpuworkbench.text import cell_width

pytestmark = pytest.mark.usefixtures("surroundings")


class TestListings:
    """`presets` and `runs`, for people and for programs."""

    def test_presets_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["presets", "--json"]) == 0
        listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
        assert set(next(iter(listed.values()))) >= {"name", "description", "card", "n_params"}
        assert listed["rtx5080_gpt2_small_baseline"]["n_params"] == 124_439_808
        assert listed["rtx5080_1b"]["n_params"] == 985_451_520
        assert listed["rtx5080_1b"]["card"] == "RTX 5080 (16 GB)"
        assert listed["rtx5080_1b"]["runs_here"] == "cpu twin"
        assert listed["quickstart"]["card"] is None
        assert listed["quickstart"]["runs_here"] == "cpu"

    def test_presets_as_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["presets"]) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert header.split() == ["NAME", "CARD", "PARAMS", "HERE", "DESCRIPTION"]
        assert [row.split()[0] for row in rows] == sorted(row.split()[0] for row in rows)
        assert any("985.5M" in row for row in rows)

    @pytest.mark.parametrize("tokenizer", ["bpe-abc", "bpe-99999999999999999999", "bpe-1", "weird"])
    def test_a_users_preset_with_an_odd_tokenizer(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, tokenizer: str
    ) -> None:
        directory = tmp_path / "config" / "gpuworkbench" / "presets"
        directory.mkdir(parents=True)
        text = f'schema_version = 1\ndescription = "\\u001b[31m\\u202e"\n[model]\n[data]\ntokenizer = "{tokenizer}"\n'
        (directory / "mine.toml").write_text(text + "[train]\nmax_steps = 1\n")
        (directory / "broken.toml").write_text("a\x1b = ")
        assert cli.main(["presets", "--json"]) == 0
        out, err = capsys.readouterr()
        mine = next(entry for entry in json.loads(out) if entry["name"] == "mine")
        assert mine["n_params"] is None
        assert mine["description"] == "\x1b[31m\u202e"
        assert err.count("\n") == 1
        assert "broken.toml: not valid TOML" in err
        assert cli.main(["presets"]) == 0
        out, err = capsys.readouterr()
        assert "␛[31m<U+202E>" in out
        assert "\x1b" not in out + err

    def test_no_runs(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert cli.main(["runs"]) == 0
        assert capsys.readouterr().out.startswith(f"no runs in {tmp_path}/runs yet; start one: gpuworkbench")
        assert cli.main(["runs", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []

    def test_runs_with_hostile_names(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        root = os.fsencode(tmp_path / "runs")
        for name in (b"plain", b"\x1b[31m", b"\xff", "\u202e".encode()):
            os.makedirs(os.path.join(root, name))
            with open(os.path.join(root, name, b"run.toml"), "wb") as stream:
                stream.write(b'schema_version = 1\npreset = "p"\n[train]\nmax_steps = 7\n')
        with open(os.path.join(root, b"plain", b"run.toml"), "ab") as stream:
            stream.write(b"a" + b".a" * 60_000 + b" = 1")
        begun = time.monotonic()
        assert cli.main(["runs", "--json"]) == 0
        out = capsys.readouterr().out
        assert out.isascii()
        assert "\x1b" not in out
        listed = {entry["run_id"]: entry for entry in json.loads(out)}
        assert set(listed) == {"plain", "\x1b[31m", "\udcff", "\u202e"}
        entry = listed["\udcff"]
        assert {"run_id", "path", "preset", "status", "step", "max_steps", "last_loss"} <= set(entry)
        assert (entry["preset"], entry["max_steps"], entry["step"], entry["last_loss"]) == ("p", 7, None, None)
        assert cli.main(["runs"]) == 0
        out = capsys.readouterr().out
        assert "␛[31m" in out
        assert "<U+202E>" in out
        assert "<U+DCFF>" in out
        assert "\x1b" not in out
        assert time.monotonic() - begun < 4.0

    def test_json_is_plain(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "\x7f\x9bä", "d": None})
        out = capsys.readouterr().out
        assert "\x7f" not in out
        assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": "\x7f\x9bä", "d": None}


class TestTables:
    """As wide as the terminal, or a line a row where there is none."""

    HEADER = ("NAME", "N", "NOTE")
    ROWS = (("short", "1", "a note of several words that goes on"), ("a-longer-name", "200", ""))

    def test_wide(self) -> None:
        assert table_lines(self.HEADER, self.ROWS, right=[1]) == [
            "NAME             N  NOTE",
            "short            1  a note of several words that goes on",
            "a-longer-name  200",
        ]
        assert table_lines(self.HEADER, self.ROWS, right=[1], width=56) == table_lines(
            self.HEADER, self.ROWS, right=[1]
        )

    def test_narrow(self) -> None:
        assert table_lines(self.HEADER, self.ROWS, right=[1], width=30) == [
            "NAME             N",
            "short            1",
            "    a note of several words",
            "    that goes on",
            "a-longer-name  200",
        ]

    def test_very_narrow(self) -> None:
        lines = table_lines(self.HEADER, self.ROWS, right=[1], width=15)
        assert lines[:2] == ["short", "      1"]
        assert lines[-2:] == ["a-longer-name", "    200"]

    @pytest.mark.parametrize("width", [24, 40, 79, 80, 81, 120, 400])
    def test_only_names_may_be_wider(self, width: int) -> None:
        rows = [("x" * 30, "損失", "word " * 50), ("y", "12", "z" * 300)]
        for line in table_lines(("A", "B", "C"), rows, width=width):
            assert cell_width(line) <= width or line == "x" * 30

    def test_names_stay_whole(self) -> None:
        assert ("x" * 100) in table_lines(("A", "B", "C"), [("x" * 100, "b", "c")], width=80)
