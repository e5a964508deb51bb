"""Torch-free tables of `module:object` names: what can be chosen, and where its code is.

A model, an optimizer or a memory strategy is added by one torch file, one torch-free spec and one line here.
Nothing is imported until it is asked for, so the UI side can list choices without loading torch. The names in
these tables are the program's own; nothing a user's file says is ever imported.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gpuworkbench.errors import ConfigError


class ModelEntry(NamedTuple):
    """Where a model family lives."""

    spec: str  # torch-free: its config struct, with parameter and byte formulas
    implementation: str  # torch: an nn.Module built from that config
    layout: str | None = None  # torch-free: its published form (gpuworkbench.hf.layout.Layout), where it has one


class OptimizerEntry(NamedTuple):
    """Where an optimizer lives."""

    spec: str  # torch-free: its keys and the state it keeps
    implementation: str  # torch: function(parameters by role, OptimizerConfig, device) -> torch.optim.Optimizer


class PredictorEntry(NamedTuple):
    """Where a predictor lives."""

    spec: str  # torch-free: how its jumps are judged and the bytes it keeps
    implementation: str  # torch: a gpuworkbench.hybrid.predictors.base.Predictor


MODELS: Mapping[str, ModelEntry] = {
    "gpt2": ModelEntry(
        "gpuworkbench.config.families.gpt2:Gpt2Config",
        "gpuworkbench.models.gpt2:Gpt2",
        layout="gpuworkbench.hf.gpt2:LAYOUT",
    ),
}

OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    "adamw": OptimizerEntry("gpuworkbench.config.optimizers:ADAMW", "gpuworkbench.training.optimizers.adamw:build"),
    "muon": OptimizerEntry("gpuworkbench.config.optimizers:MUON", "gpuworkbench.training.optimizers.muon:build"),
    "lion": OptimizerEntry("gpuworkbench.config.optimizers:LION", "gpuworkbench.training.optimizers.lion:build"),
    "adafactor": OptimizerEntry(
        "gpuworkbench.config.optimizers:ADAFACTOR", "gpuworkbench.training.optimizers.adafactor:build"
    ),
    "sgd": OptimizerEntry("gpuworkbench.config.optimizers:SGD", "gpuworkbench.training.optimizers.sgd:build"),
}

# name -> "module:function(step, ScheduleConfig, max_steps) -> multiplier in [0, 1]"
SCHEDULES: Mapping[str, str] = {
    "constant": "gpuworkbench.training.lr_schedule:constant",
    "cosine": "gpuworkbench.training.lr_schedule:cosine",
    "inverse_sqrt": "gpuworkbench.training.lr_schedule:inverse_sqrt",
    "linear": "gpuworkbench.training.lr_schedule:linear",
    "polynomial": "gpuworkbench.training.lr_schedule:polynomial",
    "warmup_stable_decay": "gpuworkbench.training.lr_schedule:warmup_stable_decay",
}

PREDICTORS: Mapping[str, PredictorEntry] = {
    "null": PredictorEntry("gpuworkbench.config.predictors:NULL", "gpuworkbench.hybrid.predictors.null:Null"),
    "random": PredictorEntry("gpuworkbench.config.predictors:RANDOM", "gpuworkbench.hybrid.predictors.random:Random"),
    "outer_nesterov": PredictorEntry(
        "gpuworkbench.config.predictors:OUTER_NESTEROV", "gpuworkbench.hybrid.predictors.outer_nesterov:OuterNesterov"
    ),
    "ema_trend": PredictorEntry(
        "gpuworkbench.config.predictors:EMA_TREND", "gpuworkbench.hybrid.predictors.ema_trend:EmaTrend"
    ),
    "line_jump": PredictorEntry(
        "gpuworkbench.config.predictors:LINE_JUMP", "gpuworkbench.hybrid.predictors.line_jump:LineJump"
    ),
    "linear": PredictorEntry(
        "gpuworkbench.config.predictors:LINEAR", "gpuworkbench.hybrid.predictors.learned:LinearPredictor"
    ),
    "mlp": PredictorEntry("gpuworkbench.config.predictors:MLP", "gpuworkbench.hybrid.predictors.learned:MlpPredictor"),
    "learned": PredictorEntry(
        "gpuworkbench.config.predictors:LEARNED", "gpuworkbench.hybrid.predictors.learned:LearnedPredictor"
    ),
    "subspace": PredictorEntry(
        "gpuworkbench.config.predictors:SUBSPACE", "gpuworkbench.hybrid.predictors.subspace:Subspace"
    ),
}

# name -> "module:Strategy class" (gpuworkbench.memory.strategy); applied, and their hooks called, in this order
MEMORY_STRATEGIES: Mapping[str, str] = {
    "bf16_weights": "gpuworkbench.memory.bf16_weights:Bf16Weights",
    "optimizer_in_backward": "gpuworkbench.memory.optimizer_in_backward:OptimizerInBackward",
    "streamed_state": "gpuworkbench.memory.streamed_state:StreamedState",
    "chunked_cross_entropy": "gpuworkbench.memory.chunked_cross_entropy:ChunkedCrossEntropy",
    "activation_checkpointing": "gpuworkbench.memory.activation_checkpointing:ActivationCheckpointing",
    "activation_offload": "gpuworkbench.memory.activation_offload:ActivationOffload",
    "predict_aware_offload": "gpuworkbench.memory.predict_aware_offload:PredictAwareOffload",
}


def load(target: str) -> Any:
    """Import `module:object` and return the object."""
    module_name, _, object_name = target.partition(":")
    return getattr(importlib.import_module(module_name), object_name)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like `name`, or None when none is at least `cutoff` alike (1: equal)."""
    names = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name[:200].lower(), list(names), n=1, cutoff=cutoff)
    return names[matches[0]] if matches else None


def lookup(table: Mapping[str, Any], name: str, key: str) -> Any:
    """`table[name]`; ConfigError naming the config `key`, the nearest name and the choices."""
    if name in table:
        return table[name]
    close = nearest(name, table)
    suggestion = f"did you mean {close!r}? " if close else ""
    raise ConfigError(f"{key} = {name[:80]!r} is not known", f"{suggestion}choices: {', '.join(sorted(table))}")
