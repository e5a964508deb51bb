"""Forks that change how weights and optimizer state are stored: what a checkpoint can give, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gpuworkbench.config.loader import Override
from gpuworkbench.errors import ConfigError
from gpuworkbench.launch.fork import fork
from gpuworkbench.runs.paths import RunPaths
from tests.fixtures.local_run import LocalRuns

SMALL = {"train.max_steps": 2, "eval.interval_steps": 0, "sample.interval_steps": 0}
BF16 = {"memory.weights": "bf16", "memory.precision": "bf16"}
PACKED = {**BF16, "memory.packed_optimizer": True}
UNPACKED = {"memory.packed_optimizer": False}


def forked(local: LocalRuns, parent: RunPaths, changes: dict[str, Any]) -> RunPaths:
    sets = tuple(Override(key, value, "--set") for key, value in {**changes, "train.max_steps": 3}.items())
    return fork(parent, local.workspace.runs, sets=sets, run_id=f"{parent.run_id}-child", environ={})


@pytest.mark.parametrize(
    ("number", "before", "changes", "named"),
    [
        (1, PACKED, {"memory.weights": "fp32", **UNPACKED}, r"memory\.weights and memory\.packed_optimizer store"),
        (2, PACKED, {"memory.stochastic_rounding": True, **UNPACKED}, r"memory\.packed_optimizer"),
        (3, PACKED, {"memory.optimizer_offload": "streamed", **UNPACKED}, r"memory\.optimizer_offload"),
        (4, BF16, {"memory.optimizer_offload": "streamed"}, r"and memory\.optimizer_offload stores"),
        (5, {}, PACKED, r"memory\.weights and memory\.packed_optimizer store"),
        (7, {}, {"memory.weights": "bf16"}, r"and memory\.weights stores"),  # its precision is resolved, to fp32 here
        (6, {}, {"optimizer.name": "lion"}, r"and optimizer\.name stores"),
    ],
)
def test_a_fork_into_another_format_is_refused_and_leaves_nothing(
    local: LocalRuns, number: int, before: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    parent = local.trained(f"refused-{number}", {**SMALL, **before})
    there = sorted(local.workspace.runs.iterdir())
    with pytest.raises(ConfigError, match=named):
        forked(local, parent, changes)
    assert sorted(local.workspace.runs.iterdir()) == there


@pytest.mark.parametrize(
    ("number", "before", "changes"),
    [
        (7, {}, {"memory.optimizer_offload": "streamed"}),
        (8, {"memory.optimizer_offload": "streamed"}, {"memory.optimizer_offload": "none"}),
        (9, BF16, {"memory.stochastic_rounding": True}),
        (10, {**BF16, "memory.stochastic_rounding": True}, {"memory.stochastic_rounding": False}),
        (
            11,
            PACKED,
            {"memory.optimizer_offload": "predict_aware", "hybrid.enabled": True, "hybrid.probe_sequences": 2},
        ),
    ],
)
def test_a_fork_within_a_format_trains_on(
    local: LocalRuns, number: int, before: dict[str, Any], changes: dict[str, Any]
) -> None:
    child = forked(local, local.trained(f"within-{number}", {**SMALL, **before}), changes)
    assert local.attempt(child) == 0
    assert [event["step"] for event in local.events(child, "step")] == [3]


def test_a_resume_with_other_weights_names_them(local: LocalRuns) -> None:
    """Nobody set memory.precision: the run's is what "auto" became."""
    paths = local.trained("named", SMALL)
    with pytest.raises(ConfigError, match=r"memory\.weights: 'bf16' does not go with memory\.precision = 'fp32'"):
        local.change(paths, {"memory.weights": "bf16"})
