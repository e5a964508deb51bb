"""Names of run files, run ids, and where runs are looked for."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.errors import UsageError
from gpuworkbench.runs.paths import RunPaths, created_unix_s, new_run_id, runs_dir, validate_run_id


def test_every_name_is_the_designed_one() -> None:
    run = RunPaths(Path("/r/id"))
    expected = {
        "preset_toml": "preset.toml",
        "run_toml": "run.toml",
        "label": "label.json",
        "env": "env.json",
        "lock": "lock",
        "events": "events.jsonl",
        "events_index": "events.idx",
        "heartbeat": "heartbeat.json",
        "control": "control",
        "trainer_log": "trainer.log",
        "checkpoints": "checkpoints",
        "tokenizer": "tokenizer",
        "samples": "samples",
        "exports": "exports",
        "tensorboard": "tensorboard",
    }
    assert {name: str(getattr(run, name).relative_to(run.root)) for name in expected} == expected
    assert run.attempt_toml(2).name == "run.2.toml"
    assert run.checkpoint(500) == Path("/r/id/checkpoints/step-00000500")
    assert run.run_id == "id"


def test_run_id_has_utc_time_preset_and_token() -> None:
    noon_in_paris = datetime(2025, 3, 1, 13, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    assert new_run_id("quickstart", noon_in_paris, "ab12") == "20250301-120005-quickstart-ab12"
    assert re.fullmatch(r"\d{8}-\d{6}-x-[0-9a-f]{4}", new_run_id("x"))
    assert created_unix_s("20250301-120005-quickstart-ab12") == noon_in_paris.timestamp()
    assert created_unix_s("baseline") is None
    assert created_unix_s("99999999-999999-x") is None


@given(st.text(max_size=300))
def test_any_preset_name_gives_a_valid_run_id(preset: str) -> None:
    run_id = new_run_id(preset, datetime(2025, 1, 1, tzinfo=UTC), "0000")
    assert validate_run_id(run_id) == run_id


@pytest.mark.parametrize("good", ["baseline-1", "a", "run.2", "Größe_3", "x" * 120])
def test_plain_names_are_accepted(good: str) -> None:
    assert validate_run_id(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "..",
        "a..b",
        ".hidden",
        "-rf",
        "a/b",
        "/etc",
        "a\\b",
        "a b",
        "a\nb",
        "a\x1b[31m",
        "a\0b",
        "x" * 121,
        "\u202egnp",
        "é" * 61,
        "\udc80",
        "a\u200bb",
        "tmp\x7f",
    ],
)
def test_hostile_names_are_refused_in_one_line(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate_run_id(bad)
    line = caught.value.line()
    assert line.isprintable()
    assert len(line) < 300


def test_where_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("GPUWORKBENCH_RUNS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert runs_dir() == tmp_path / "data" / "gpuworkbench" / "runs"

    checkout = tmp_path / "checkout"
    (checkout / "gpuworkbench").mkdir(parents=True)
    (checkout / "gpuworkbench" / "__init__.py").touch()
    (checkout / "pyproject.toml").touch()
    monkeypatch.chdir(checkout)
    assert runs_dir() == checkout / "runs"
    monkeypatch.chdir(checkout / "gpuworkbench")
    assert runs_dir() == checkout / "runs"

    monkeypatch.setenv("GPUWORKBENCH_RUNS_DIR", "elsewhere")
    assert runs_dir() == checkout / "gpuworkbench" / "elsewhere"
    assert runs_dir(str(tmp_path / "flag")) == tmp_path / "flag"
    with pytest.raises(UsageError):
        runs_dir("a\0b")
