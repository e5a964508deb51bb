"""Keys that somebody sets for a run in which they do nothing: refused, naming the flag or variable.

What a preset says stays as it is: `--set hybrid.enabled=false` works on one with a whole [hybrid] section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.predictors import predictor_names, spec_of
from gpuworkbench.config.schema import RunConfig

ALWAYS = frozenset({"hybrid.enabled", "hybrid.ema_eval_decay", "hybrid.state_device"})
OF_HYBRID = tuple(key for field in HybridConfig.__struct_fields__ if (key := f"hybrid.{field}") not in ALWAYS)
OF_PHASES = ("memory.precision_warmup", "memory.precision_predict", "memory.precision_correct")
OFF, ON = "hybrid.enabled is false", "set hybrid.enabled = true, or leave it out"


class Idle(NamedTuple):
    """Keys, when they do nothing, why, and what to do about it."""

    keys: tuple[str, ...]
    is_idle: Callable[[HybridConfig], bool]
    why: str
    fix: str


def _only_averages(hybrid: HybridConfig) -> bool:
    return all(spec_of(name).averages for name in predictor_names(hybrid))


# The first that applies is told.
IDLE = (
    Idle((*OF_HYBRID, *OF_PHASES), lambda hybrid: not hybrid.enabled, OFF, ON),
    Idle(
        ("hybrid.state_device",),
        lambda hybrid: not (hybrid.enabled or hybrid.ema_eval_decay),
        f"{OFF}, and hybrid.ema_eval_decay is 0",
        ON,
    ),
    Idle(
        ("hybrid.dynamics_device",),
        lambda hybrid: not hybrid.dynamics,
        "hybrid.dynamics is off, so no model computes there",
        "set hybrid.dynamics = true, or leave it out",
    ),
    Idle(
        ("hybrid.outer_lr", "hybrid.outer_momentum"),
        lambda hybrid: "outer_nesterov" not in predictor_names(hybrid),
        "it is for outer_nesterov, which is not among the predictors",
        "set hybrid.predictor = 'outer_nesterov', or leave it out",
    ),
    Idle(
        ("hybrid.correction_interval",),
        _only_averages,
        "the predictors that are chosen jump over hybrid.full_steps at once",
        "choose another predictor, or leave it out",
    ),
    Idle(
        ("hybrid.max_predict_steps",),  # the dynamics model and the corrector look so far ahead too
        lambda hybrid: _only_averages(hybrid) and not (hybrid.dynamics or hybrid.corrector),
        "the predictors that are chosen stand for hybrid.full_steps",
        "choose another predictor, set hybrid.full_steps, or leave it out",
    ),
)


def idle_keys(config: RunConfig, table: Mapping[str, Any], keys: Iterable[str]) -> Iterator[tuple[str, Idle]]:
    """Those of `keys`, set on top of `table`, that changed it and do nothing. `config` is what came of it, valid."""
    changed = {key for key in keys if _is_changed(config, table, key)}
    for idle in IDLE:
        if idle.is_idle(config.hybrid):
            yield from ((key, idle) for key in idle.keys if key in changed)


def _is_changed(config: RunConfig, table: Mapping[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    made = getattr(config, section)
    defaults = {field.name: field.default for field in msgspec.structs.fields(type(made))}
    return bool(getattr(made, name) != table.get(section, {}).get(name, defaults[name]))
