"""The reports that compare real runs: figures of a log with known numbers, and pages that show what is stored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import small_three, stacks_1b
from benchmarks._record import RESULTS
from benchmarks.real_runs import Case, figures, operation_shares, read_events
from gpuworkbench.events import schema
from tests.fixtures.event_logs import LogBuilder
from tests.unit.test_docs import ROOT


def stored(name: str) -> dict[str, Any]:
    result: dict[str, Any] = msgspec.json.decode((RESULTS / f"{name}.json").read_bytes())
    return result


def test_figures_of_a_run_with_known_numbers(tmp_path: Path) -> None:
    log = LogBuilder().start(n_params=1000)
    more: dict[str, Any] = {"tokens_per_s": 100.0, "step_time_s": 0.5}
    log.tick(1.0).step(1, 3.0, phase="warmup", tokens_seen=50, **more)
    log.tick(1.0).step(2, 2.0, phase="full", tokens_seen=100, **more)
    log.tick(1.0).step(3, 2.75, phase="full", tokens_seen=150, **more)
    jump: dict[str, Any] = {"predictor": "null", "exploration": True, "confidence": None, "predicted_loss": None}
    jump |= {"probe_before": 2.0, "probe_after": 1.9, "delta_norm": 1.0, "horizon_steps": 2}
    log.add(schema.Prediction, 3, accepted=True, duration_s=0.25, **jump)
    log.add(schema.Prediction, 3, accepted=False, duration_s=0.25, **jump)
    log.tick(1.0).step(4, 2.5, phase="correct", tokens_seen=200, **more)
    log.add(schema.Correction, 4, rolled_back=True, actual_loss=2.5, predicted_loss=None, residual_norm=None)
    sums: dict[str, Any] = {"num_bytes": 8, "freed_bytes": 8, "duration_s": 0.5, "overlapped_s": 0.25}
    log.add(schema.Offload, 4, op="offload", target="optimizer", phase="predict", **sums)
    log.tick(1.0).eval(4, 2.25)
    log.write(tmp_path / "events.jsonl")
    found = figures(read_events(tmp_path))
    assert (found["steps"], found["tokens"], found["tokens_per_s"]) == (4, 200, 100.0)
    assert found["wall_s"] == pytest.approx(5.0)
    assert (found["train_loss"], found["val_loss"]) == (2.5, 2.25)
    assert found["val_perplexity"] == math.exp(2.25)
    assert found["max_loss_rise"] == 0.75
    assert (found["accepted"], found["rejected"], found["rollbacks"]) == (1, 1, 1)
    assert found["phase_steps"] == {"warmup": 1, "full": 2, "correct": 1}
    assert found["phase_shares"] == {"warmup": 0.2, "full": 0.4, "correct": 0.2, "predict": 0.2}
    assert found["time_shares"]["steps"] == 0.4
    assert found["time_shares"]["jumps"] == 0.1
    assert sum(found["time_shares"].values()) == pytest.approx(1.0, abs=1e-3)
    assert found["transfers_not_hidden_s"] == 0.25


def test_operations_are_counted_as_one_kind_each() -> None:
    assert operation_shares({"aten::add": 1.0, "aten::addmm": 6.0, "aten::_fused_adamw_": 3.0}) == {
        "matrix products": 0.6,
        "optimizer": 0.3,
        "other": 0.1,
    }


def test_a_case_is_typed_as_a_person_would() -> None:
    case = Case("quickstart", {"hybrid.enabled": False, "train.threads": 1}, ("--cpu-twin",))
    assert " ".join(case.flags(**{"train.threads": 2})) == (
        "--preset quickstart --cpu-twin --set hybrid.enabled=false --set train.threads=2"
    )


def test_the_pages_show_what_is_stored() -> None:
    assert "\n".join(small_three.report(stored("small_three"))) in (ROOT / "docs" / "compare-small.md").read_text()
    assert "\n".join(stacks_1b.table(stored("stacks_1b"))) in (ROOT / "docs" / "memory.md").read_text()
