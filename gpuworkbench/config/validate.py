"""Rules that span several keys. A field's own range lives on the field, in schema.py."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gpuworkbench import registry
from gpuworkbench.config.applicable import owners, strays
from gpuworkbench.config.memory_rules import memory_problems
from gpuworkbench.config.predictors import predictor_names
from gpuworkbench.config.schema import RunConfig, ScheduleConfig

NAMED_TOKENIZER = re.compile(r"^(byte|bpe-[1-9]\d{2,5}|[A-Za-z0-9_./-]+)$")
MAX_EVAL_FIX = 64  # sequences of a validation's batch, where one is suggested
MAX_MORE_TOKENS = 16  # times what was asked for, where more are suggested


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
    yield from _curricula(config)
    yield from _hybrid(config)
    for rule in memory_problems(config):
        yield Problem(*rule)
    if config.memory.activation_offload and config.device.compile != "off":
        what = f"works block by block, and device.compile = {config.device.compile!r} makes one of them all"
        yield Problem("memory.activation_offload", what, "set device.compile = 'off', or leave it out")
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
        else:
            yield from _strays(config, key.partition(".")[0], name)
    if not config.data.source.strip():
        yield Problem("data.source", "is empty", "name stdlib, synthetic or a path")
    # A path may be any text; whether there is something is the data side's to find out.
    if not (NAMED_TOKENIZER.match(config.data.tokenizer) or "/" in config.data.tokenizer):
        yield Problem("data.tokenizer", f"{config.data.tokenizer!r} is not known", "use byte, bpe-8192, gpt2 or a path")


def _strays(config: RunConfig, section: str, name: str) -> Iterator[Problem]:
    """Keys that would have no effect."""
    for key in strays(section, msgspec.structs.asdict(getattr(config, section))):
        what = f"has no effect with {section}.name = {name!r}"
        yield Problem(f"{section}.{key}", what, f"leave it out; it is for {', '.join(sorted(owners(section)[key]))}")


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
        yield Problem(
            "eval.tokens",
            f"{config.eval.tokens} does not divide by batch x seq_len = "
            f"{config.eval_micro_batch_size} x {config.train_seq_len} = {batch_tokens}",
            eval_fix(config.eval.tokens, config.eval_micro_batch_size, config.train_seq_len),
        )


def eval_fix(tokens: int, sequences: int, seq_len: int) -> str:
    """What makes `tokens` of a validation whole batches of `sequences` x `seq_len`: a smaller batch where one is more
    than all of them, else the numbers of tokens next to it."""
    batch_tokens = sequences * seq_len
    below = tokens // batch_tokens * batch_tokens
    if not below and tokens % seq_len == 0:
        smaller = next(n for n in range(min(sequences, MAX_EVAL_FIX), 0, -1) if tokens // seq_len % n == 0)
        more = f", or eval.tokens to {batch_tokens}" if batch_tokens <= MAX_MORE_TOKENS * tokens else ""
        return f"set eval.micro_batch_size to {smaller}{more}"
    return f"set eval.tokens to {' or '.join(str(n) for n in (below, below + batch_tokens) if n)}"


def _hybrid(config: RunConfig) -> Iterator[Problem]:
    hybrid = config.hybrid
    if hybrid.ema_eval_decay and not config.eval.interval_steps:
        yield Problem(
            "hybrid.ema_eval_decay", "needs validations, but eval.interval_steps is 0", "set eval.interval_steps"
        )
    if not hybrid.enabled:
        return
    if hybrid.bandit_predictors and not hybrid.bandit:
        fix = "set hybrid.bandit = true, or leave it out"
        yield Problem("hybrid.bandit_predictors", "has no effect: hybrid.bandit is off, which chooses among them", fix)
    names = predictor_names(hybrid)
    for number, name in enumerate(names):
        key = "hybrid.bandit_predictors" if number else "hybrid.predictor"
        if name not in registry.PREDICTORS:
            close = registry.nearest(name, registry.PREDICTORS)
            fix = f"did you mean {close!r}? " if close else ""
            choices = ", ".join(sorted(registry.PREDICTORS))
            yield Problem(key, f"{name!r} is not known", f"{fix}choices: {choices}")
        if name in names[:number]:
            where = "is hybrid.predictor already" if name == hybrid.predictor else "is there twice"
            yield Problem(key, f"{name!r} {where}", "name each predictor once")
        if name == "learned" and not hybrid.dynamics:
            fix = f"set hybrid.dynamics = true, or use {key} = linear"
            yield Problem(key, "'learned' reads the dynamics model, which is off", fix)
    if not hybrid.exploration:
        yield Problem("hybrid.exploration", "0, so that nothing is ever predicted", "set it to 1 or more")


def _curricula(config: RunConfig) -> Iterator[Problem]:
    schedule, train = config.schedule, config.train
    window, micro, full = config.train_seq_len, train.micro_batch_size, train.micro_batch_size * train.grad_accum_steps
    length, batch = schedule.seq_len_start, schedule.batch_start_sequences
    yield from _both_or_neither(schedule, "seq_len_start", "seq_len_warmup_tokens")
    yield from _both_or_neither(schedule, "batch_start_sequences", "batch_warmup_tokens")
    if length and length >= window:
        fix = "set it lower, or both schedule.seq_len_start and schedule.seq_len_warmup_tokens to 0"
        yield Problem("schedule.seq_len_start", f"{length} is not below train.seq_len = {window}", fix)
    elif length and window % length:
        near = _nearest_divisor(window, length)
        yield Problem(
            "schedule.seq_len_start", f"{length} does not divide train.seq_len = {window}", f"set it to {near}"
        )
    size = f"train.micro_batch_size x train.grad_accum_steps = {full}"
    if batch and batch >= full:
        fix = "set it lower, or both schedule.batch_start_sequences and schedule.batch_warmup_tokens to 0"
        yield Problem("schedule.batch_start_sequences", f"{batch} is not below {size}", fix)
    elif batch and micro % batch and batch % micro:
        near = batch // micro * micro or _nearest_divisor(micro, batch)
        what = f"{batch} neither divides train.micro_batch_size = {micro} nor is a multiple of it"
        yield Problem("schedule.batch_start_sequences", what, f"set it to {near}")
    if schedule.batch_lr_scaling != "none" and not batch:
        yield Problem(
            "schedule.batch_lr_scaling",
            f"{schedule.batch_lr_scaling!r} scales with a batch that never grows",
            "set schedule.batch_start_sequences and schedule.batch_warmup_tokens, or leave it out",
        )


def _both_or_neither(schedule: ScheduleConfig, start: str, warmup: str) -> Iterator[Problem]:
    for set_one, other in ((start, warmup), (warmup, start)):
        if getattr(schedule, set_one) and not getattr(schedule, other):
            what = f"is 0, so schedule.{set_one} = {getattr(schedule, set_one)} does nothing"
            yield Problem(f"schedule.{other}", what, f"set it too, or schedule.{set_one} to 0")


def _nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` next to `wanted`, below `number` itself where there is one."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = {*small, *(number // n for n in small[1:])}
    return min(divisors, key=lambda n: (abs(n - wanted), n))
