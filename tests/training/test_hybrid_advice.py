"""The judges beside a real training: their actions happen, they resume bit for bit, and nothing of them is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpuworkbench.hybrid.dynamics import model
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, wrapped_forward
from tests.training.test_hybrid_resume import SETS, told

ALL = {"hybrid.dynamics": True, "hybrid.corrector": True, "hybrid.bandit": True, "hybrid.auto_tuning": True}
STEPS = 90
LONG: dict[str, Any] = {
    **SETS,
    **ALL,
    "train.max_steps": STEPS,
    "checkpoint.interval_steps": 9,
    "eval.interval_steps": STEPS,
    "hybrid.confidence_threshold": 0.05,
}


@pytest.fixture
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dynamics model that learns every tick, as beside a training whose steps are large."""
    monkeypatch.setattr(model, "update_interval", lambda step_flops: 1)
    monkeypatch.setattr(model, "WARM_SEQUENCES", 2)


@pytest.mark.usefixtures("quick_model")
@pytest.mark.parametrize("predictor", ["learned", "outer_nesterov"])
def test_with_all_advice_a_killed_run_is_the_same_run(local: LocalRuns, predictor: str) -> None:
    sets = {**LONG, "hybrid.predictor": predictor}
    whole = local.trained(f"whole-{predictor}", sets)
    cut = local.create(f"cut-{predictor}", sets)
    for step in (20, 61, 80):
        killed(local.open(cut), step)
    assert local.attempt(cut) == 0
    assert final_tensors(cut, STEPS) == final_tensors(whole, STEPS)
    assert told(local, cut) == told(local, whole)
    run = local.open(whole)
    assert isinstance(run.hybrid, HybridTrainer)
    assert run.hybrid.dynamics.model.updates > 0  # type: ignore[attr-defined]
    assert run.hybrid.corrector.at_5.count > 0  # type: ignore[attr-defined]
    assert run.hybrid.bandit.bandit.count > 0  # type: ignore[attr-defined]
    run.checkpointer.wait()
    run.events.close()
