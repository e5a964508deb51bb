"""Exact mode on a card raises at operations that have no deterministic form there; no run may come to one.

A CPU has all of them, so this looks at the names of what runs do, against the list that torch documents for
`use_deterministic_algorithms` (torch 2.11) and its kernels' own alerts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpuworkbench import registry
from gpuworkbench.hybrid.dynamics.model import Dynamics
from gpuworkbench.hybrid.signals import StepSignals
from gpuworkbench.training.attempt import finish
from tests.fixtures.local_run import LocalRuns

REFUSED_BEGINNINGS = (
    "put",
    "histc",
    "histogramdd",
    "kthvalue",
    "nll_loss2d",
    "avg_pool3d_backward",
    "_adaptive_avg_pool",
    "adaptive_max_pool2d_backward",
    "max_pool3d",
    "max_unpool",
    "fractional_max_pool",
    "upsample_",
    "reflection_pad",
    "replication_pad",
    "grid_sampler",
    "_ctc_loss_backward",
    "_embedding_bag",
)
REFUSED_OF_NUMBERS = ("cumsum", "bincount", "logcumsumexp", "cumprod")  # of floats; bincount: with such weights
REFUSED_OVERLOADS = ("median.dim", "median.dim_values", "nanmedian.dim", "nanmedian.dim_values")


class Refused(TorchDispatchMode):
    """Collects what a card would refuse in exact mode."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.n_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        self.n_calls += 1
        floats = any(isinstance(each, torch.Tensor) and each.is_floating_point() for each in args)
        products = any(name.startswith(each) for each in REFUSED_OF_NUMBERS) and floats
        if products or name.startswith(REFUSED_BEGINNINGS) or name in REFUSED_OVERLOADS:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


HYBRID = {
    "hybrid.enabled": True,
    "hybrid.warmup_steps": 2,
    "hybrid.full_steps": 7,
    "hybrid.correct_steps": 1,
    "hybrid.exploration": 99,
    "hybrid.probe_sequences": 2,
    "hybrid.ema_eval_decay": 0.9,
    "hybrid.moment_damping": 0.5,
}
ADVISED = {"hybrid.dynamics": True, "hybrid.corrector": True, "hybrid.auto_tuning": True}
SMALL_MEMORY = {
    "memory.weights": "bf16",
    "memory.packed_optimizer": True,
    "memory.chunked_cross_entropy": True,
    "memory.activation_checkpointing": "selective",
    "memory.activation_offload": True,
}
CASES: dict[str, dict[str, Any]] = {
    "learned": {**HYBRID, **ADVISED, "hybrid.predictor": "learned"},
    "subspace": {**HYBRID, **ADVISED, "hybrid.predictor": "subspace"},
    "line-jump": {**HYBRID, "hybrid.predictor": "line_jump"},
    "small-memory": {**HYBRID, **SMALL_MEMORY},
    "streamed": {"memory.optimizer_offload": "streamed"},
    **{name: {"optimizer.name": name} for name in registry.OPTIMIZERS if name != "adamw"},
}
STEPS = 14


@pytest.mark.parametrize("name", CASES)
def test_no_run_does_what_a_card_refuses_in_exact_mode(local: LocalRuns, name: str) -> None:
    common = {"train.mode": "exact", "train.grad_accum_steps": 1, "train.max_steps": STEPS, "sample.interval_steps": 10}
    run = local.open(local.create(name, {**common, **CASES[name]}))
    with Refused() as refused:
        assert finish(run).exit_code == 0
    run.events.close()
    assert refused.n_calls > STEPS
    assert refused.found == set()


def test_the_dynamics_model_does_not_either() -> None:
    """It may compute on the card; in a run so small it learns too seldom to be seen above."""
    dynamics = Dynamics(seed=0, step_flops=1e15)
    with Refused() as refused:
        for step in range(1, 160):
            dynamics.observe(StepSignals(step, 160, "full", 2.0 + 1.0 / step, 1.0, 1e-3, 0.0, 1.0, 1.0, 1.0))
        dynamics.forecast(5)
    assert dynamics.updates
    assert refused.found == set()


def test_one_that_a_card_refuses_is_found() -> None:
    with Refused() as refused:
        torch.ones(3).cumsum(0)
        torch.ones(3, dtype=torch.int64).cumsum(0)
        torch.ones(3).median(0)
    assert refused.found == {"cumsum.default", "median.dim"}
