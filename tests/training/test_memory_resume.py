"""Every memory strategy: killed and resumed, a run ends as the one that was left alone, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, on_reaching

# On, but never beyond its warm-up: the test changes phases.
HYBRID = {"hybrid.enabled": True, "hybrid.warmup_steps": 1000}
BASE = {"train.max_steps": 6, "checkpoint.interval_steps": 2, "model.n_layer": 2, "eval.interval_steps": 3}
STRATEGIES: dict[str, dict[str, Any]] = {
    "chunked": {"memory.chunked_cross_entropy": True, "memory.cross_entropy_chunk_rows": 8},
    "all": {"memory.activation_checkpointing": "all", "model.dropout": 0.1},
    "every": {"memory.activation_checkpointing": "every_n", "model.dropout": 0.1},
    "selective": {"memory.activation_checkpointing": "selective", "model.dropout": 0.1},
    "offload": {"memory.activation_offload": True, "model.dropout": 0.1},
    "predict-aware": {"memory.optimizer_offload": "predict_aware", **HYBRID},
    "by-phase": {"memory.precision_predict": "bf16"},
    "fp16-phase": {"memory.precision_predict": "fp16"},
    "together": {
        "memory.chunked_cross_entropy": True,
        "memory.activation_checkpointing": "all",
        "memory.activation_offload": True,
        "memory.optimizer_offload": "predict_aware",
        "memory.precision_predict": "bf16",
        **HYBRID,
    },
}


def with_phases(run: TrainingRun) -> TrainingRun:
    """Steps 3 to 5 belong to a predicted phase, each after a stretch of virtual steps, wherever the attempt begins."""

    def stretch(step: int) -> None:
        if run.phases.current != "predict":
            run.phases.change(step, "predict", "test", 3)
        for remaining in (3, 2, 1):
            for strategy in run.strategies:
                strategy.virtual_step(remaining)

    for step in range(2, 5):
        on_reaching(run, step, lambda step=step: stretch(step))
    on_reaching(run, 5, lambda: run.phases.change(5, "full", "test"))
    return run


def trained(local: LocalRuns, run_id: str, sets: dict[str, Any]) -> RunPaths:
    run = with_phases(local.open(local.create(run_id, sets)))
    assert finish(run).status == "completed"
    run.events.close()
    return run.paths


@pytest.mark.parametrize(("name", "step"), [*((name, 5) for name in STRATEGIES), ("together", 3)])
def test_killed_and_resumed(local: LocalRuns, name: str, step: int) -> None:
    sets = {**BASE, **STRATEGIES[name]}
    whole = local.workspace.runs / f"whole-{name}"
    if not whole.exists():
        trained(local, whole.name, sets)
    paths = local.create(f"killed-{name}-{step}", sets)
    killed(with_phases(local.open(paths)), step)
    run = with_phases(local.open(paths))
    assert 0 < run.progress.step < 6
    assert finish(run).status == "completed"
    run.events.close()
    assert final_tensors(paths, 6) == final_tensors(RunPaths(whole), 6)
    assert local.losses(paths) == local.losses(RunPaths(whole))
