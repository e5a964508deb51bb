"""Fit me: other ways to do the same step, ranked by what they cost, each as the flags that make it.

Searched: micro-batch (the tokens of a step are kept) x checkpointing x how weights and state are stored x activation
offload x chunked loss x where the hybrid trainer keeps its state and undo copies. An alternative with a change that
another one does without, and is no faster for it, is left out.

One that the host has too little memory for, or that needs much where the host is not known, gets the keys that spare
it: undo copies in a file, checkpoints without a copy. None of that changes what a step computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from gpuworkbench.config.applicable import EVERY_KEY
from gpuworkbench.config.diff import differences
from gpuworkbench.config.memory_rules import without_idle_distance
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.validate import problems
from gpuworkbench.plan.analytic import Estimate, Verdict, estimate
from gpuworkbench.plan.judge import ORDER, judge
from gpuworkbench.plan.step_cost import step_cost
from gpuworkbench.plan.targets import Target
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import GIB

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
PLACES: tuple[Mapping[str, Any], ...] = ({}, {"state_device": "host"}, {"undo_storage": "disk"})
# Undo copies in a file, checkpoints written without a copy, or both.
SPARING: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = (
    ({"undo_storage": "disk"}, {}),
    ({}, {"in_background": False}),
    ({"undo_storage": "disk"}, {"in_background": False}),
)
MUCH_HOST_BYTES = 24 * GIB  # of the 31 GiB that a PC of 32 GB has, what other programs leave


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
    present = estimate(known, kind=target.kind)
    much = max(MUCH_HOST_BYTES, present.host_bytes if present is not None else 0)
    found: dict[tuple[str, ...], Alternative] = {}
    for candidate in candidates(known, target.kind):
        chosen, predicted = _spared(candidate, target, much)
        sets = flags(known, chosen)
        if sets and sets not in found:
            found[sets] = _alternative(chosen, sets, predicted, target, now_s)
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
    places = PLACES if kind == "cuda" and config.hybrid.enabled and config.hybrid.state_device == "device" else ({},)
    every = itertools.product(micro_batches(config), places, storages, [{}, *checkpointing], offloads, chunked)
    for batch, place, *changes in every:
        merged: dict[str, Any] = {**memory_now, **{key: value for change in changes for key, value in change.items()}}
        made = msgspec.structs.replace(
            config,
            train=msgspec.structs.replace(config.train, **batch),
            memory=type(config.memory)(**merged),
            hybrid=msgspec.structs.replace(config.hybrid, **place),
        )
        made = without_idle_distance(made)
        if not any(True for _ in problems(made)):
            yield made


def _spared(candidate: RunConfig, target: Target, much: int) -> tuple[RunConfig, Estimate]:
    """The candidate with the fewest keys that spare host memory and make its verdict the best, or where the host is
    not known, bring what is needed below `much`; as it is where nothing is to be gained."""
    made = candidate, _predicted(candidate, target)
    if target.host_bytes is None:
        if made[1].host_bytes <= much:
            return made
        ways = [made, *((way, _predicted(way, target)) for way in _sparing(candidate))]
        return next((each for each in ways if each[1].host_bytes <= much), None) or min(
            ways, key=lambda each: each[1].host_bytes
        )
    if judge(made[1], target) is Verdict.FITS:
        return made
    ways = [made, *((way, _predicted(way, target)) for way in _sparing(candidate))]
    return min(ways, key=lambda each: ORDER.index(judge(each[1], target)))


def _predicted(config: RunConfig, target: Target) -> Estimate:
    predicted = estimate(config, kind=target.kind)
    assert predicted is not None  # the vocabulary is known
    return predicted


def _sparing(config: RunConfig) -> Iterator[RunConfig]:
    """The ways to need less host memory that are none already."""
    for hybrid, checkpoint in SPARING:
        if hybrid and not (config.hybrid.enabled and config.hybrid.undo_storage == "memory"):
            continue
        if checkpoint and not config.checkpoint.in_background:
            continue
        yield msgspec.structs.replace(
            config,
            hybrid=msgspec.structs.replace(config.hybrid, **hybrid),
            checkpoint=msgspec.structs.replace(config.checkpoint, **checkpoint),
        )


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
    # What has no use for a distance of recomputed blocks takes it away by itself.
    idle = {EVERY_KEY} if candidate.memory.activation_checkpointing != "every_n" else set[str]()
    changed = [each for each in differences(config, candidate) if each.key not in idle]
    return tuple(f"{each.key}={_text(each.new)}" for each in changed)


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
