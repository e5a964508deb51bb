"""How much text each optimizer step holds: sequence length and batch size as pure functions of the tokens seen.

Both may start small and rise to full size, linearly in tokens, rounded down to a few sizes so that few shapes occur:

    sequence length  L(n) = s + (T - s) min(n / N, 1)   Li, Zhang and He 2022, "The Stability-Efficiency Dilemma:
                                                        Investigating Sequence Length Warmup" (arXiv 2108.06084)
    batch size       b(n) = s + (B - s) min(n / N, 1)   Brown et al. 2020, GPT-3 (arXiv 2005.14165), section 2.3

with n tokens seen, N the warm-up in tokens, s the start, T = train.seq_len and B the full step's sequences. (Li et al.
count n in steps and round to multiples of 8.)

Nothing is lost and nothing read twice: a stage with sequences of t tokens reads whole windows of T tokens, in groups of
as many windows as a step has sequences, each window cut into T / t parts. Step j of a group reads part j of all its
windows, so that the sequences of a batch come from different places. A stage lasts for whole groups.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpuworkbench.config.schema import RunConfig

# lr ~ (b / B) ** exponent. linear: Smith et al. 2018 (arXiv 1711.00489), and McCandlish et al. 2018 (arXiv 1812.06162)
# for SGD far below the gradient noise scale; sqrt: Malladi et al. 2022 (arXiv 2205.10287) for Adam.
LR_EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


class Stage(NamedTuple):
    """Steps of one size, from `first_token` (tokens seen before the first of them) on."""

    first_token: int
    seq_len: int
    micro_batch_size: int
    grad_accum_steps: int
    n_parts: int  # of a window of train.seq_len tokens

    @property
    def sequences(self) -> int:
        """Sequences an optimizer step holds; also the windows of a group."""
        return self.micro_batch_size * self.grad_accum_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimizer step holds."""
        return self.sequences * self.seq_len

    @property
    def group_tokens(self) -> int:
        """Tokens of the `n_parts` steps that read a group of windows."""
        return self.tokens_per_step * self.n_parts


class Place(NamedTuple):
    """What the next step reads: part `part` (0 is the first) of each window of the group it is in."""

    stage: Stage
    part: int

    @property
    def ends_group(self) -> bool:
        """Whether the step reads the last part of its windows."""
        return self.part == self.stage.n_parts - 1

    @property
    def begun_windows(self) -> int:
        """Windows of which a part has been read and others have not."""
        return self.stage.sequences if self.part else 0


@dataclass(frozen=True)
class Curriculum:
    """The stages of a run, in order; the last has full size. Without warm-ups there is that one only."""

    stages: tuple[Stage, ...]
    lr_exponent: float = 0.0

    @classmethod
    def of(cls, config: RunConfig) -> Curriculum:
        """The stages of a valid config (`config.validate` has no problem with it)."""
        schedule, window = config.schedule, config.train_seq_len
        micro, full = config.train.micro_batch_size, config.train.micro_batch_size * config.train.grad_accum_steps
        lengths = _ramp(lengths_from(schedule.seq_len_start or window, window), schedule.seq_len_warmup_tokens)
        batches = _ramp(batches_from(schedule.batch_start_sequences or full, micro, full), schedule.batch_warmup_tokens)
        stages: list[Stage] = []
        for border in sorted({border for border, _ in (*lengths, *batches)}):
            first = _end_of_group(stages[-1], border) if stages else 0
            if stages and first == stages[-1].first_token:
                stages.pop()  # the rounding of the stages before it has left no step
            seq_len, sequences = _size_at(lengths, border), _size_at(batches, border)
            rows = min(sequences, micro)
            stages.append(Stage(first, seq_len, rows, sequences // rows, window // seq_len))
        return cls(tuple(stages), LR_EXPONENTS[schedule.batch_lr_scaling])

    @property
    def is_on(self) -> bool:
        """Whether steps differ in size."""
        return len(self.stages) > 1

    def place(self, tokens_seen: int) -> Place:
        """What the step after `tokens_seen` tokens reads."""
        stage = self.stages[self._index(tokens_seen)]
        return Place(stage, (tokens_seen - stage.first_token) % stage.group_tokens // stage.tokens_per_step)

    def end(self, stage: Stage) -> int | None:
        """Tokens seen when `stage` is over; None for the last."""
        following = self.stages.index(stage) + 1
        return self.stages[following].first_token if following < len(self.stages) else None

    def tokens_after(self, tokens_seen: int, n_steps: int) -> int:
        """Tokens seen when `n_steps` steps have followed `tokens_seen` tokens."""
        for index in range(self._index(tokens_seen), len(self.stages)):
            stage = self.stages[index]
            end = self.end(stage)
            inside = n_steps if end is None else min(n_steps, -((tokens_seen - end) // stage.tokens_per_step))
            tokens_seen += inside * stage.tokens_per_step
            n_steps -= inside
            if n_steps == 0:
                break
        return tokens_seen

    def steps_for(self, n_tokens: float) -> int:
        """Steps from the run's beginning until at least `n_tokens` tokens are seen."""
        steps = 0
        for stage in self.stages:
            end = self.end(stage)
            if end is None or n_tokens <= end:
                return steps + math.ceil((n_tokens - stage.first_token) / stage.tokens_per_step)
            steps += (end - stage.first_token) // stage.tokens_per_step
        raise AssertionError("the last stage has no end")

    def schedule_step(self, step: int, tokens_seen: int, max_steps: int) -> tuple[int, int]:
        """Where `step` (1 is the first), taken after `tokens_seen` tokens, stands in the learning rate's schedule, and
        how long that is: in steps, or in full-size steps' worth of tokens where steps differ in size."""
        if not self.is_on:
            return step, max_steps
        full_tokens = self.stages[-1].tokens_per_step
        before_last = self.tokens_after(tokens_seen, max_steps - step)
        return tokens_seen // full_tokens + 1, before_last // full_tokens + 1

    def lr_factor(self, tokens_seen: int) -> float:
        """Multiple of the scheduled learning rate for the batch size after `tokens_seen` tokens, in (0, 1]."""
        batch = self.stages[self._index(tokens_seen)].sequences
        return float((batch / self.stages[-1].sequences) ** self.lr_exponent)

    def shapes(self) -> set[tuple[int, int]]:
        """The (micro-batch, sequence length) shapes that the model computes on while it trains."""
        return {(stage.micro_batch_size, stage.seq_len) for stage in self.stages}

    def _index(self, tokens_seen: int) -> int:
        return bisect_right(self.stages, tokens_seen, key=lambda stage: stage.first_token) - 1


def lengths_from(start: int, full: int) -> list[int]:
    """Sequence lengths from `start` to `full`, each the smallest larger multiple of the last that divides `full`.

    Doublings where full / start is a power of two. `start` must divide `full`.
    """
    sizes = [start]
    while sizes[-1] < full:
        sizes.append(sizes[-1] * _smallest_factor(full // sizes[-1]))
    return sizes


def batches_from(start: int, micro_batch_size: int, full: int) -> list[int]:
    """Sequences a step from `start` to `full`: up to `micro_batch_size` as `lengths_from`, then doublings.

    `start` divides `micro_batch_size` or is a multiple of it, as `full` is: no micro-batch is ever a partial one.
    """
    sizes = lengths_from(start, micro_batch_size) if start < micro_batch_size else [start]
    while sizes[-1] < full:
        sizes.append(min(2 * sizes[-1], full))
    return sizes


def _smallest_factor(number: int) -> int:
    """The smallest prime factor of `number` > 1."""
    return next((factor for factor in range(2, math.isqrt(number) + 1) if number % factor == 0), number)


def _ramp(sizes: Sequence[int], warmup_tokens: int) -> list[tuple[int, int]]:
    """(tokens seen, size) of each size: when the straight line from the first to the last reaches it."""
    start, full = sizes[0], sizes[-1]
    return [(-(-warmup_tokens * (size - start) // max(full - start, 1)), size) for size in sizes]


def _size_at(ramp: Sequence[tuple[int, int]], tokens_seen: int) -> int:
    return next(size for border, size in reversed(ramp) if border <= tokens_seen)


def _end_of_group(stage: Stage, border: int) -> int:
    """The end of the group that reaches `border`, not before the stage itself begins."""
    groups = max(-((stage.first_token - border) // stage.group_tokens), 0)
    return stage.first_token + groups * stage.group_tokens
