"""Which settings of [memory] go together, and what each of them needs of the rest of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gpuworkbench import registry
from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.memory_section import EVERY_DEFAULT
from gpuworkbench.config.predictors import longest_prediction, predictor_names, spec_of
from gpuworkbench.config.schema import RunConfig

PRECISIONS = ("precision", "precision_warmup", "precision_full", "precision_predict", "precision_correct")


class Rule(NamedTuple):
    """A key that cannot be what it is, why, and what to do about it."""

    key: str
    what: str
    fix: str


def memory_problems(config: RunConfig) -> Iterator[Rule]:
    """Every combination that cannot work."""
    yield from _checkpointing(config)
    yield from _bf16_products(config)
    yield from _small_formats(config)
    yield from _streamed(config)
    yield from _predict_aware(config)
    yield from _in_backward(config)


def _checkpointing(config: RunConfig) -> Iterator[Rule]:
    memory = config.memory
    key, every = "memory.activation_checkpointing_every", memory.activation_checkpointing_every
    if every == EVERY_DEFAULT:
        return
    if memory.activation_checkpointing != "every_n":
        what = f"has no effect with memory.activation_checkpointing = {memory.activation_checkpointing!r}"
        yield Rule(key, what, "set that to 'every_n', or leave it out")
    elif every > config.model.n_layer and not config.has_open_sizes and not config.is_cpu_twin:
        what = f"{every} is more than the model's {config.model.n_layer} blocks, of which only the first is recomputed"
        yield Rule(key, what, f"set it to {config.model.n_layer} or less")


def without_idle_distance(config: RunConfig) -> RunConfig:
    """`config` with no distance of recomputed blocks where its activation checkpointing has no use for one."""
    if config.memory.activation_checkpointing == "every_n":
        return config
    memory = msgspec.structs.replace(config.memory, activation_checkpointing_every=EVERY_DEFAULT)
    return msgspec.structs.replace(config, memory=memory)


def _bf16_products(config: RunConfig) -> Iterator[Rule]:
    memory = config.memory
    if memory.weights != "bf16":
        return
    for key in PRECISIONS:
        value = getattr(memory, key)
        if value not in (None, "auto", "bf16"):
            # told of the weights: a run has its precision resolved, and who changes the weights never set it
            what = f"'bf16' does not go with memory.{key} = {value!r}, which cannot be computed with bf16 weights"
            yield Rule("memory.weights", what, f"set memory.{key} = 'bf16' too, or leave the weights as they were")


def _small_formats(config: RunConfig) -> Iterator[Rule]:
    memory = config.memory
    for key in ("stochastic_rounding", "packed_optimizer"):
        if not getattr(memory, key):
            continue
        if memory.weights != "bf16":
            yield Rule(f"memory.{key}", "is for bf16 weights, memory.weights is fp32", "set memory.weights = 'bf16'")
        yield from _needs_adamw(config, f"memory.{key}")
    if memory.stochastic_rounding and memory.packed_optimizer:
        what = "has no effect with memory.packed_optimizer, which rounds its 24-bit weights at random itself"
        yield Rule("memory.stochastic_rounding", what, "leave one of them out")


def _streamed(config: RunConfig) -> Iterator[Rule]:
    memory = config.memory
    if memory.optimizer_offload != "streamed":
        return
    key = "memory.optimizer_offload"
    yield from _needs_adamw(config, key, "'streamed'")
    for other in ("packed_optimizer", "stochastic_rounding", "optimizer_in_backward"):
        if getattr(memory, other):
            what = f"'streamed' keeps exact fp32 state on the host and does not go with memory.{other}"
            yield Rule(key, what, "leave one of them out")


def _predict_aware(config: RunConfig) -> Iterator[Rule]:
    """State leaves while a stretch is predicted, so there must be one, and time in it to leave and return."""
    if config.memory.optimizer_offload != "predict_aware":
        return
    key, hybrid = "memory.optimizer_offload", config.hybrid
    if not hybrid.enabled:
        what = "'predict_aware' has no effect: nothing is predicted with hybrid.enabled = false"
        yield Rule(key, what, "set it to 'none' or 'streamed', or hybrid.enabled = true")
    elif all(name in registry.PREDICTORS and not _ever_leaves(hybrid, name) for name in predictor_names(hybrid)):
        name = "full_steps" if spec_of(hybrid.predictor).averages else "max_predict_steps"
        steps = getattr(hybrid, name)
        what = f"'predict_aware' has no effect: no jump is longer than a step with hybrid.{name} = {steps}"
        interval = "" if steps == 1 else f" and hybrid.correction_interval = {hybrid.correction_interval}"
        yield Rule(key, what + interval, f"set hybrid.{name} to 3 or more, or leave it out")


def _ever_leaves(hybrid: HybridConfig, predictor: str) -> bool:
    """Whether a predicted phase at its longest gives the state time: a jump over several virtual steps, or several
    true steps between jumps (PredictAwareOffload.enter_phase)."""
    longest_jump, jumps = longest_prediction(hybrid, predictor)
    return longest_jump > 1 or jumps > 2


def _in_backward(config: RunConfig) -> Iterator[Rule]:
    if not config.memory.optimizer_in_backward:
        return
    key, train = "memory.optimizer_in_backward", config.train
    if train.grad_accum_steps > 1:
        what = f"frees each gradient at once, but train.grad_accum_steps = {train.grad_accum_steps} adds them up"
        yield Rule(key, what, "set train.grad_accum_steps = 1 with a larger train.micro_batch_size, or leave it out")
    if train.grad_clip_norm > 0:
        what = f"updates before the global norm is known, which train.grad_clip_norm = {train.grad_clip_norm:g} needs"
        yield Rule(key, what, "set train.grad_clip_norm = 0, or leave it out")
    if config.hybrid.enabled and config.hybrid.auto_tuning:
        what = "updates before the norm is known that hybrid.auto_tuning clips to"
        yield Rule(key, what, "set hybrid.auto_tuning = false, or leave it out")
    for name in PRECISIONS:
        if getattr(config.memory, name) == "fp16":
            what = f"updates before the loss scaler of memory.{name} = 'fp16' has looked at the gradients"
            yield Rule(key, what, f"set memory.{name} = 'bf16', or leave it out")


def _needs_adamw(config: RunConfig, key: str, value: str = "") -> Iterator[Rule]:
    if config.optimizer.name != "adamw":
        what = f"{value} is AdamW's, and optimizer.name is {config.optimizer.name!r}".lstrip()
        yield Rule(key, what, "set optimizer.name = 'adamw', or leave it out")
