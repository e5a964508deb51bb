"""The configuration of each trial of a comparison: the preset's, at another length, with an arm's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuworkbench.config.loader import Override, apply_overrides, build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.plan.hybrid_bench import WARMDOWN_FRACTION, Arm, Work

STABLE = "warmup_stable_decay"
# An arm is its predictor alone, the controls above all: a preset's bandit would switch off what does not pay.
JUMPS_AS_IT_IS: Mapping[str, Any] = {"hybrid.bandit": False, "hybrid.bandit_predictors": ""}


def arm_config(config: RunConfig, arm: Arm, work: Work) -> RunConfig:
    """`config` trained for `work.steps` steps with its whole schedule in them. Raises ConfigError.

    Everything that is a length of the schedule, and the start of the hybrid trainer, keeps its share of the run. The
    seed decides the initial weights, dropout and the order of the data; the split stays that of the prepared data.
    """
    keys = {
        **_lengths(config, work),
        **_quiet(work.steps),
        "train.max_steps": work.steps,
        "train.seed": work.seed,
        "data.seed": work.seed,
        "optimizer.lr": work.lr,
        "schedule.name": work.schedule,
        "hybrid.enabled": arm.is_hybrid,
        "hybrid.ema_eval_decay": 0.0,
        **JUMPS_AS_IT_IS,
        **arm.sets,
    }
    if not arm.is_hybrid and config.memory.optimizer_offload == "predict_aware":
        keys["memory.optimizer_offload"] = "none"  # the same training: nothing is predicted that state could leave in
    table = parse_toml(dump_toml(config), "the preset")
    table["train"].pop("max_epochs", None)
    where = f"the arm {arm.name}"
    return build(apply_overrides(table, [Override(key, value, where) for key, value in keys.items()]), where)


def _lengths(config: RunConfig, work: Work) -> dict[str, Any]:
    """Lengths in proportion to the run's, but for keys that the schedule does not have."""
    full = config.train.max_steps
    assert full is not None
    schedule = config.schedule
    keys: dict[str, Any] = {}
    for name in schedule.__struct_fields__:
        if name.endswith(("_steps", "_tokens")):
            length = getattr(schedule, name)
            least = int(length > 0 and name.endswith("_tokens"))  # 0 tokens would switch a curriculum off by half
            keys[f"schedule.{name}"] = max(round(length * work.steps / full), least)
    keys["schedule.warmdown_steps"] = 0
    if work.schedule == STABLE:
        has_own = schedule.name == STABLE and schedule.warmdown_steps > 0
        share = schedule.warmdown_steps / full if has_own else WARMDOWN_FRACTION
        keys["schedule.warmdown_steps"] = round(share * work.steps)
    keys["hybrid.warmup_steps"] = round(config.hybrid.warmup_steps * work.steps / full)
    return keys


def _quiet(steps: int) -> dict[str, Any]:
    """One validation, at the end; nothing sampled, nothing ended early."""
    return {"eval.interval_steps": steps, "sample.interval_steps": 0, "early_stopping.patience": 0}
