"""Memory is full in a run with predicted steps: what a prediction half changed is never saved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from tests.fixtures.local_run import Forward, LocalRuns, Wrap, final_tensors, wrapped_forward

STEPS = 16
SETS = {
    "train.max_steps": STEPS,
    "eval.interval_steps": 0,
    "checkpoint.interval_steps": 5,
    "hybrid.enabled": True,
    "hybrid.predictor": "outer_nesterov",
    "hybrid.warmup_steps": 2,
    "hybrid.full_steps": 3,
    "hybrid.correct_steps": 1,
    "hybrid.exploration": 9,
    "hybrid.probe_sequences": 2,
}


@pytest.fixture(scope="module")
def whole(local: LocalRuns) -> RunPaths:
    paths = local.trained("hybrid-whole", SETS)
    assert local.events(paths, "prediction"), "it jumps"
    return paths


def full_at(when: str) -> tuple[Wrap, list[bool]]:
    """Full in the first true step after the first jump, or within the first jump."""
    is_predicting: list[bool] = []

    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        def full(x: Tensor, y: Tensor) -> Tensor:
            now = "prediction" if is_predicting and is_predicting[-1] else "forward"
            if is_predicting.count(True) == 1 and now == when and (now == "prediction" or model.training):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(x, y)

        return full

    return wrap, is_predicting


@pytest.mark.parametrize("when", ["forward", "prediction"])
def test_a_resume_goes_on_from_the_last_checkpoint_bit_for_bit(
    local: LocalRuns, whole: RunPaths, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    paths = local.create(f"hybrid-full-in-{when}", SETS)
    wrap, is_predicting = full_at(when)
    jump = HybridTrainer._jump

    def jumping(self: HybridTrainer, *arguments: object) -> None:
        is_predicting.append(True)
        try:
            jump(self, *arguments)  # type: ignore[arg-type]
        finally:
            is_predicting.append(False)

    with monkeypatch.context() as patch, wrapped_forward(wrap):
        patch.setattr(HybridTrainer, "_jump", jumping)
        assert local.attempt(paths) == 75
    (error,) = local.events(paths, "error")
    assert error["where"] == when
    reached = local.events(paths, "run_finished")[-1]["step"]
    assert all(reference.step < reached or reference.step % 5 == 0 for reference in list_checkpoints(paths))
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, STEPS) == final_tensors(whole, STEPS)
