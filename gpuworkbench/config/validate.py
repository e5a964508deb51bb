"""Rules that span several keys. A field's own range lives on the field, in schema.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from gpuworkbench import registry
from gpuworkbench.config.schema import RunConfig

NAMED_TOKENIZER = re.compile(r"^(byte|bpe-[1-9]\d{2,5}|[A-Za-z0-9_./-]+)$")


class Problem(NamedTuple):
    """One thing that is wrong: the key, what, and what to do about it."""

    key: str
    what: str
    fix: str


def problems(config: RunConfig) -> Iterator[Problem]:
    """Everything wrong with a config whose single values are in range."""
    if not config.has_open_sizes:
        for key, what, fix in config.model.problems():
            yield Problem(key, what, fix)
    yield from _names(config)
    yield from _lengths(config)
    if config.hybrid.enabled:
        yield Problem("hybrid.enabled", "this version trains without predicted steps", "set hybrid.enabled = false")
    if config.early_stopping.patience and not config.eval.interval_steps:
        yield Problem(
            "early_stopping.patience", "needs validations, but eval.interval_steps is 0", "set eval.interval_steps"
        )
    if config.is_cpu_twin and config.device.kind != "cpu":
        yield Problem(
            "device.kind", f"{config.device.kind!r}, but a CPU twin computes on the CPU", "leave it, or --cpu-twin, out"
        )
    if config.device.kind == "cpu" and config.device.memory_limit_gib is not None:
        yield Problem(
            "device.memory_limit_gib", "caps a CUDA card, but device.kind is cpu", "leave it out, or use a card"
        )


def _names(config: RunConfig) -> Iterator[Problem]:
    for key, table, name in (
        ("optimizer.name", registry.OPTIMIZERS, config.optimizer.name),
        ("schedule.name", registry.SCHEDULES, config.schedule.name),
    ):
        if name not in table:
            close = registry.nearest(name, table)
            fix = f"did you mean {close!r}? " if close else ""
            yield Problem(key, f"{name!r} is not known", f"{fix}choices: {', '.join(sorted(table))}")
    if not config.data.source.strip():
        yield Problem("data.source", "is empty", "name stdlib, synthetic or a path")
    # A path may be any text; whether there is something is the data side's to find out.
    if not (NAMED_TOKENIZER.match(config.data.tokenizer) or "/" in config.data.tokenizer):
        yield Problem("data.tokenizer", f"{config.data.tokenizer!r} is not known", "use byte, bpe-8192, gpt2 or a path")


def _lengths(config: RunConfig) -> Iterator[Problem]:
    if config.train_seq_len > config.model.seq_len and not config.has_open_sizes:
        yield Problem(
            "train.seq_len",
            f"{config.train_seq_len} tokens are more than the model's {config.model.seq_len} positions",
            f"set train.seq_len <= {config.model.seq_len} or raise model.seq_len",
        )
    if config.train.max_steps is None and config.train.max_epochs is None:
        yield Problem("train.max_steps", "is missing, and so is train.max_epochs", "set one of them, or use --steps N")
    batch_tokens = config.eval_micro_batch_size * config.train_seq_len
    if config.eval.interval_steps and config.eval.tokens % batch_tokens and not config.has_open_sizes:
        below = config.eval.tokens // batch_tokens * batch_tokens
        choices = [n for n in (below, below + batch_tokens) if n]
        yield Problem(
            "eval.tokens",
            f"{config.eval.tokens} does not divide by batch x seq_len = "
            f"{config.eval_micro_batch_size} x {config.train_seq_len} = {batch_tokens}",
            f"set eval.tokens to {' or '.join(map(str, choices))}",
        )
