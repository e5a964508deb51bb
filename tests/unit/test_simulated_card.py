"""A capped card is called a simulated card on every surface without a screen (the app's are in tests/tui)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuworkbench.cli import main
from gpuworkbench.config.loader import Override, build
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.errors import ConfigError
from gpuworkbench.headless.summary import summary_lines
from gpuworkbench.runs.create import create_run
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.store import run_info, simulated_card
from gpuworkbench.state.compare import as_json, compare, load
from gpuworkbench.state.compare_table import summary_table
from gpuworkbench.state.lines import notable_lines
from tests.fixtures.event_logs import LogBuilder

LABEL = "simulated card, 16 GiB"


def capped_run(runs: Path, name: str = "capped", *, limit_gib: float | None = 16) -> RunPaths:
    """A run on an H200 that acts as a smaller card, as far as it has come."""
    preset = load_preset("rtx5080_gpt2_small_baseline")
    sets = [] if limit_gib is None else [Override("device.memory_limit_gib", limit_gib, "--set")]
    paths = create_run(runs, name, preset.text, dump_toml(configure(preset, sets=sets)))
    log = LogBuilder().start(
        run_id=name, device="cuda:0", card="NVIDIA H200", simulated_card=LABEL if limit_gib else None
    )
    log.step(1, 10.9).step(2, 10.5).write(paths.events)
    return paths


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))


def test_the_config_names_it_once() -> None:
    config = configure(
        load_preset("rtx5080_gpt2_small_baseline"), sets=[Override("device.memory_limit_gib", 8.5, "--set")]
    )
    assert config.simulated_card == "simulated card, 8.5 GiB"
    assert config.label == "rtx5080_gpt2_small_baseline (simulated card, 8.5 GiB)"
    again = build(parse_toml(dump_toml(config), "run.toml"), "run.toml")
    assert again.simulated_card == config.simulated_card


def test_a_cpu_twin_simulates_no_card() -> None:
    preset = load_preset("rtx5080_gpt2_small_baseline")
    assert configure(preset, cpu_twin=True).simulated_card is None
    with pytest.raises(ConfigError, match=r"caps a CUDA card, but device\.kind is cpu"):
        configure(preset, sets=[Override("device.memory_limit_gib", 8, "--set")], cpu_twin=True)


def test_the_first_line_and_the_summary(tmp_path: Path) -> None:
    state = load(capped_run(tmp_path)).state
    (line, *_) = notable_lines(state.attempts[0], state)
    assert line.text.endswith(f"on NVIDIA H200 ({LABEL})")
    assert f"capped, {LABEL}: not finished" in summary_lines(state)[0]
    plain = load(capped_run(tmp_path, "plain", limit_gib=None)).state
    assert "simulated" not in "\n".join(summary_lines(plain))


def test_runs_as_a_table_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capped_run(tmp_path)
    capped_run(tmp_path, "plain", limit_gib=None)
    assert main(["runs", "--json", "--runs-dir", str(tmp_path)]) == 0
    found = {run["run_id"]: run["simulated_card"] for run in json.loads(capsys.readouterr().out)}
    assert found == {"capped": LABEL, "plain": None}
    assert main(["runs", "--runs-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [LABEL in line for line in lines if line.startswith(("capped", "plain"))].count(True) == 1


@pytest.mark.parametrize(
    "device", [{}, {"memory_limit_gib": "16"}, {"memory_limit_gib": True}, {"memory_limit_gib": 10**400}, "x", None]
)
def test_a_run_file_may_hold_anything(device: Any) -> None:
    assert simulated_card({"device": device}) is None


def test_a_run_without_a_log_is_labelled_too(tmp_path: Path) -> None:
    paths = capped_run(tmp_path)
    paths.events.unlink()
    assert run_info(paths).simulated_card == LABEL
    assert compare([load(paths), load(capped_run(tmp_path, "other"))]).runs[0].simulated_card == LABEL


def test_compare_marks_the_run_and_names_the_difference(tmp_path: Path) -> None:
    runs = [load(capped_run(tmp_path)), load(capped_run(tmp_path, "plain", limit_gib=None))]
    result = compare(runs)
    names = [row[1] for row in summary_table(result).rows]
    assert names == [f"capped ({LABEL})", "plain"]
    assert [run["simulated_card"] for run in as_json(result, runs)["runs"]] == [LABEL, None]
    assert ("device.memory_limit_gib", (16, None)) in [(item.key, item.values) for item in result.differences]
