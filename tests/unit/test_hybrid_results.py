"""The stored comparisons and the page made from them: nothing was typed by hand or changed afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.hybrid_results import OVERVIEW, PAGE, overview_with, page_with, stored
from gpuworkbench.commands.bench_hybrid_report import pictures_of
from gpuworkbench.plan.hybrid_analysis import analyse
from gpuworkbench.plan.hybrid_bench import BenchPlan, Trial
from gpuworkbench.plan.hybrid_bench_files import Preregistration

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NAMES = sorted(stored())


def result_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_are_those_of_the_trials(name: str) -> None:
    result = result_of(name)
    plan = msgspec.convert(result["preregistration"]["plan"], BenchPlan)
    trials = msgspec.convert(result["trials"], list[Trial])
    again = json.loads(msgspec.json.encode(analyse(plan, trials)))
    assert again.keys() == result["arms"].keys()
    for arm, row in again.items():
        for key, value in row.items():
            expected = result["arms"][arm][key]
            assert value == (pytest.approx(expected) if isinstance(expected, float) else expected), (arm, key)
    assert all(trial.seed in plan.seeds for trial in trials if not trial.arm.startswith("tuning."))
    assert not {trial.seed for trial in trials if trial.arm.startswith("tuning.")} & set(plan.seeds)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_decided_beforehand_has_the_stored_hash(name: str) -> None:
    """Written again as the comparison writes it, it is the same bytes."""
    result = result_of(name)
    decided = msgspec.convert(result["preregistration"], Preregistration)
    data = msgspec.json.format(msgspec.json.encode(decided), indent=2) + b"\n"
    assert hashlib.sha256(data).hexdigest() == result["preregistration_sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_are_those_of_the_result(name: str) -> None:
    for part, picture in pictures_of(result_of(name)).items():
        assert (RESULTS / f"{name}-{part}.svg").read_text() == picture


def test_the_page_is_what_the_stored_results_make_of_it() -> None:
    page = PAGE.read_text()
    assert page_with(stored(), page) == page


def test_the_overview_has_their_summary() -> None:
    page = OVERVIEW.read_text()
    assert overview_with(stored(), page) == page
    assert all(f"[{name}](hybrid-results.md#{name})" in page for name in NAMES)
