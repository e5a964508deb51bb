"""Fit me: other ways to do the same step, ranked by what they cost, each as the flags that make it.

Searched: micro-batch (the tokens of a step are kept) x checkpointing x how weights and state are stored x activation
offload x chunked loss. An alternative with a change that another one does without, and is no faster for it, is left
out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from gpuworkbench.config.diff import differences
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.validate import problems
from gpuworkbench.plan.analytic import Estimate, Verdict, estimate
from gpuworkbench.plan.judge import judge
from gpuworkbench.plan.step_cost import step_cost
from gpuworkbench.plan.targets import Target
from gpuworkbench.plan.vocabulary import with_known_vocabulary

MAX_SHOWN = 8
_PLAIN = {"packed_optimizer": False, "stochastic_rounding": False, "optimizer_in_backward": False}
STORAGES: tuple[Mapping[str, Any], ...] = (
    {"weights": "bf16", "packed_optimizer": True, "stochastic_rounding": False, "optimizer_offload": "none"},
    {**_PLAIN, "optimizer_offload": "streamed"},
    {**_PLAIN, "weights": "bf16", "optimizer_offload": "streamed"},
)
CHECKPOINTING: tuple[Mapping[str, Any], ...] = (
    {"activation_checkpointing": "none"},
    {"activation_checkpointing": "selective"},
    {"activation_checkpointing": "every_n", "activation_checkpointing_every": 2},
    {"activation_checkpointing": "all"},
)


class Alternative(Struct, frozen=True, kw_only=True):
    """One way: the keys to set, and what comes of it. `slowdown`: predicted step time over the present one's."""

    sets: tuple[str, ...]
    verdict: Verdict
    total_bytes: int
    host_bytes: int
    pinned_bytes: int
    slowdown: float

    @property
    def flags(self) -> str:
        """As they are typed."""
        return " ".join(f"--set {text}" for text in self.sets)


def alternatives(config: RunConfig, target: Target, limit: int = MAX_SHOWN) -> list[Alternative]:
    """Ways that fit the target, the cheapest first; where none does, the smallest ones. Empty for an unknown size."""
    known = with_known_vocabulary(config)
    if known is None:
        return []
    now_s = step_cost(known, target.card_name, target.kind).total_s
    found = {}
    for candidate in candidates(known, target.kind):
        sets = flags(known, candidate)
        if sets and sets not in found and (predicted := estimate(candidate, kind=target.kind)) is not None:
            found[sets] = _alternative(candidate, sets, predicted, target, now_s)
    every = list(found.values())
    fitting = [each for each in every if each.verdict is not Verdict.DOES_NOT_FIT]
    if not fitting:
        return sorted(every, key=lambda each: (each.total_bytes, each.slowdown))[: min(limit, 3)]
    ranked = sorted(fitting, key=lambda each: (each.slowdown, len(each.sets), each.total_bytes))
    kept: list[Alternative] = []
    for each in ranked:
        if not any(set(other.sets) <= set(each.sets) for other in kept):
            kept.append(each)
    # A tight one may fail where the allocator fragments: those that fit without doubt come first.
    kept.sort(key=lambda each: each.verdict is Verdict.TIGHT)
    return kept[:limit]


def candidates(config: RunConfig, kind: str) -> Iterator[RunConfig]:
    """Every combination that the configuration's rules allow."""
    memory_now = msgspec.structs.asdict(config.memory)
    storages: list[Mapping[str, Any]] = [{}]
    if config.optimizer.name == "adamw" and kind == "cuda":
        storages += STORAGES
    checkpointing = [each for each in CHECKPOINTING if each["activation_checkpointing"] == "none"]
    checkpointing = list(CHECKPOINTING) if config.device.compile == "off" else checkpointing
    offloads = [{}, {"activation_offload": True}] if kind == "cuda" else [{}]
    chunked = [{}] if config.memory.chunked_cross_entropy else [{}, {"chunked_cross_entropy": True}]
    for batch, *changes in itertools.product(micro_batches(config), storages, [{}, *checkpointing], offloads, chunked):
        merged: dict[str, Any] = {**memory_now, **{key: value for change in changes for key, value in change.items()}}
        made = msgspec.structs.replace(
            config, train=msgspec.structs.replace(config.train, **batch), memory=type(config.memory)(**merged)
        )
        if not any(True for _ in problems(made)):
            yield made


def micro_batches(config: RunConfig) -> list[dict[str, int]]:
    """The micro-batch as it is and smaller by halves, the tokens of a step kept."""
    size, accum = config.train.micro_batch_size, config.train.grad_accum_steps
    found = [{"micro_batch_size": size, "grad_accum_steps": accum}]
    while size % 2 == 0:
        size, accum = size // 2, accum * 2
        found.append({"micro_batch_size": size, "grad_accum_steps": accum})
    if size > 1:
        found.append({"micro_batch_size": 1, "grad_accum_steps": accum * size})
    return found


def flags(config: RunConfig, candidate: RunConfig) -> tuple[str, ...]:
    """The keys that make `candidate` of `config`, as `--set` takes them."""
    return tuple(f"{each.key}={_text(each.new)}" for each in differences(config, candidate))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _alternative(
    candidate: RunConfig, sets: tuple[str, ...], predicted: Estimate, target: Target, now_s: float
) -> Alternative:
    return Alternative(
        sets=sets,
        verdict=judge(predicted, target),
        total_bytes=predicted.total_bytes,
        host_bytes=predicted.host_bytes,
        pinned_bytes=predicted.pinned_bytes,
        slowdown=round(step_cost(candidate, target.card_name, target.kind).total_s / now_s, 3),
    )
