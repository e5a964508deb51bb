"""What may change while a run is going, and which values it may take: one list for the trainer and for screens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError

LR_SCALE = "optimizer.lr_scale"  # a factor on the scheduled learning rate; no key of a run file
INTERVALS = ("checkpoint.interval_steps", "eval.interval_steps", "sample.interval_steps")
LIVE_KEYS: Mapping[str, str] = {
    LR_SCALE: "factor on the scheduled learning rate, above 0 and at most 100",
    "eval.interval_steps": "steps between validations; 0 turns them off",
    "checkpoint.interval_steps": "steps between checkpoints; 0: only at the end or when stopped",
    "sample.interval_steps": "steps between samples; 0 turns them off",
}


def configured_values(config: RunConfig) -> dict[str, float]:
    """The live keys as a run file sets them."""
    return {
        LR_SCALE: 1.0,
        "checkpoint.interval_steps": config.checkpoint.interval_steps,
        "eval.interval_steps": config.eval.interval_steps,
        "sample.interval_steps": config.sample.interval_steps,
    }


def checked(key: str, value: Any) -> float:
    """`value` as the trainer takes it for `key`. Raises ConfigError."""
    if key not in LIVE_KEYS:
        raise ConfigError(f"{key!r} cannot change while a run is going", f"choices: {', '.join(LIVE_KEYS)}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if key in INTERVALS:
        if is_number and value == int(value) and value >= 0:
            return int(value)
        raise ConfigError(f"{key} = {value!r} is not a number of steps", "give a whole number, 0 turns it off")
    if is_number and 0 < value <= 100:
        return float(value)
    raise ConfigError(f"{key} = {value!r} is not a factor", "give a number above 0 and at most 100")
