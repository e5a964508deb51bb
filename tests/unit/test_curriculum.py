"""Curricula of sequence length and batch size: the papers' lines, no token lost or read twice, refusals."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.config.curriculum import Curriculum, batches_from, lengths_from
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.schema import EvalConfig, RunConfig, ScheduleConfig, TrainConfig
from gpuworkbench.config.validate import problems
from gpuworkbench.data import SampleOrder, TokenArray, batch
from gpuworkbench.data.order import NOT_SCORED
from gpuworkbench.launch.resolve import resolve_steps
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.units import MIB
from tests.fixtures.curricula import stepped


def config(seq_len: int = 128, micro: int = 8, accum: int = 1, **schedule: Any) -> RunConfig:
    return RunConfig(
        schema_version=1,
        model=Gpt2Config(seq_len=seq_len, vocab_size=512, n_layer=1),
        train=TrainConfig(max_steps=10, micro_batch_size=micro, grad_accum_steps=accum),
        eval=EvalConfig(interval_steps=0),
        schedule=ScheduleConfig(**schedule),
    )


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """Valid configs with either curriculum or both."""
    window = draw(st.sampled_from([1, 6, 12, 16, 17, 30, 64]))
    micro, accum = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    starts = [n for n in range(1, window) if window % n == 0]
    batches = [n for n in range(1, micro * accum) if micro % n == 0 or n % micro == 0]
    keys: dict[str, Any] = {}
    if starts and draw(st.booleans()):
        keys |= {"seq_len_start": draw(st.sampled_from(starts)), "seq_len_warmup_tokens": draw(st.integers(1, 9000))}
    if batches and draw(st.booleans()):
        keys |= {"batch_start_sequences": draw(st.sampled_from(batches))}
        keys |= {"batch_warmup_tokens": draw(st.integers(1, 9000))}
    made = config(window, micro, accum, **keys)
    assert not list(problems(made))
    return made


# The papers' straight lines


def test_sequence_length_follows_the_line_of_li_et_al() -> None:
    """From 64 to 1024 over N tokens, rounded down to doublings: 128 when N / 15 are seen, since 64 + 960 / 15 = 128."""
    n = 15 * 8 * 1024 * 100
    stages = Curriculum.of(config(1024, 8, seq_len_start=64, seq_len_warmup_tokens=n)).stages
    assert [(stage.first_token, stage.seq_len) for stage in stages] == [
        (0, 64),
        (n // 15, 128),
        (3 * n // 15, 256),
        (7 * n // 15, 512),
        (n, 1024),
    ]
    assert {stage.sequences for stage in stages} == {8}


def test_batch_follows_the_line_of_gpt3() -> None:
    """From 32k tokens a step to 0.5M over N tokens (GPT-3 Small in its table 2.1), in doublings."""
    n = 15 * 512 * 1024 * 10
    ramp = Curriculum.of(config(1024, 8, 64, batch_start_sequences=32, batch_warmup_tokens=n))
    assert [(stage.first_token, stage.tokens_per_step) for stage in ramp.stages] == [
        (0, 2**15),
        (n // 15, 2**16),
        (3 * n // 15, 2**17),
        (7 * n // 15, 2**18),
        (n, 2**19),
    ]
    assert ramp.shapes() == {(8, 1024)}, "the ramp goes through accumulation, which costs no new shape"


@settings(max_examples=150, deadline=None)
@given(made=configs())
def test_every_step_has_the_size_of_the_formula(made: RunConfig) -> None:
    curriculum = Curriculum.of(made)
    steps = stepped(made)
    for number in range(400):
        n, sequences, seq_len = next(steps)
        place = curriculum.place(n)
        assert (place.stage.sequences, place.stage.seq_len) == (sequences, seq_len)
        assert curriculum.tokens_after(0, number) == n
        assert curriculum.tokens_after(n, 400 - number) == curriculum.tokens_after(0, 400)
        assert curriculum.steps_for(n) == number
        assert curriculum.steps_for(n + 0.5) == number + 1


@settings(max_examples=150, deadline=None)
@given(made=configs())
def test_stages_are_few_and_within_bounds(made: RunConfig) -> None:
    curriculum = Curriculum.of(made)
    window, micro, accum = made.train_seq_len, made.train.micro_batch_size, made.train.grad_accum_steps
    last = curriculum.stages[-1]
    assert (last.seq_len, last.micro_batch_size, last.grad_accum_steps, last.n_parts) == (window, micro, accum, 1)
    assert curriculum.end(last) is None
    for before, after in zip(curriculum.stages, curriculum.stages[1:], strict=False):
        assert after.seq_len % before.seq_len == 0
        assert after.sequences >= before.sequences
        assert curriculum.end(before) == after.first_token > before.first_token
        assert (after.first_token - before.first_token) % before.group_tokens == 0
    assert all(stage.micro_batch_size <= micro for stage in curriculum.stages), "memory is that of the full size"
    assert len({stage.seq_len for stage in curriculum.stages}) <= 1 + math.log2(window)
    assert len({stage.sequences for stage in curriculum.stages}) <= 3 + math.log2(micro * accum)


@pytest.mark.parametrize(
    ("start", "full", "sizes"),
    [
        (8, 64, [8, 16, 32, 64]),
        (64, 768, [64, 128, 256, 768]),
        (1, 17, [1, 17]),
        (7, 7, [7]),
        (1, 2**31 - 1, [1, 2**31 - 1]),
    ],
)
def test_lengths(start: int, full: int, sizes: list[int]) -> None:
    assert lengths_from(start, full) == sizes


@pytest.mark.parametrize(
    ("start", "micro", "full", "sizes"),
    [
        (1, 4, 16, [1, 2, 4, 8, 16]),
        (32, 8, 480, [32, 64, 128, 256, 480]),
        (2, 6, 6, [2, 6]),
        (6, 6, 30, [6, 12, 24, 30]),
    ],
)
def test_batches(start: int, micro: int, full: int, sizes: list[int]) -> None:
    assert batches_from(start, micro, full) == sizes


# Data


def targets_read(made: RunConfig, n_tokens: int, n_steps: int, start: tuple[int, int] = (0, 0)) -> list[list[int]]:
    """Positions of the targets of each step, counted as the training loop counts; token i is i.

    `start`: tokens and sequences seen before.
    """
    tokens = TokenArray([np.arange(n_tokens, dtype=np.uint32)])
    order = SampleOrder(n_tokens, made.train_seq_len, 3)
    curriculum = Curriculum.of(made)
    (seen, sequences), steps = start, []
    for _ in range(n_steps):
        place = curriculum.place(seen)
        x, y = batch(tokens, order, sequences, place.stage.sequences, (place.stage.seq_len, place.part))
        assert x.shape == y.shape == (place.stage.sequences, place.stage.seq_len)
        assert np.array_equal(y, x + 1)
        steps.append(y.ravel().tolist())
        sequences += place.stage.sequences if place.ends_group else 0
        seen += place.stage.tokens_per_step
    return steps


CURRICULA: list[dict[str, Any]] = [
    {},
    {"seq_len_start": 4, "seq_len_warmup_tokens": 3000},
    {"batch_start_sequences": 2, "batch_warmup_tokens": 3000},
    {
        "seq_len_start": 2,
        "seq_len_warmup_tokens": 2500,
        "batch_start_sequences": 1,
        "batch_warmup_tokens": 1700,
    },
]


@pytest.mark.parametrize("keys", CURRICULA, ids=["off", "seq_len", "batch", "both"])
def test_every_token_is_a_target_once_an_epoch(keys: dict[str, Any]) -> None:
    """The borders of the stages and that of the first epoch lie within the steps looked at."""
    made = config(16, 4, 3, **keys)
    curriculum, order = Curriculum.of(made), SampleOrder(1200, 16, 3)
    epoch_tokens = order.n_windows * 16
    n_epochs = 3
    n_steps = curriculum.steps_for(n_epochs * epoch_tokens)
    assert curriculum.stages[-1].first_token < n_epochs * epoch_tokens
    targets = Counter(target for step in targets_read(made, 1200, n_steps) for target in step)
    wanted: Counter[int] = Counter()
    for epoch in range(n_epochs):
        first = order.offset(epoch) + 1
        wanted.update(range(first, first + epoch_tokens))
    assert not wanted - targets, "a token was left out"
    begun = targets - wanted  # the last step reaches into the fourth epoch
    assert begun.total() < 16 * 4 * 3
    assert set(begun.values()) <= {1}


def test_a_batch_of_short_sequences_comes_from_as_many_places() -> None:
    made = config(16, 4, 3, seq_len_start=4, seq_len_warmup_tokens=3000)
    order = SampleOrder(1200, 16, 3)
    first = targets_read(made, 1200, 4)
    for part, step in enumerate(first):
        expected = [start + 1 + 4 * part + i for start in order.starts_at(0, 12).tolist() for i in range(4)]
        assert step == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seen=st.integers(0, 6000), keys=st.sampled_from(CURRICULA[1:]))
def test_a_fork_that_changes_sizes_anywhere_reads_nothing_twice(
    data: st.DataObject, seen: int, keys: dict[str, Any]
) -> None:
    """`seen` tokens are no multiple of anything here: the parent had other sizes."""
    n_tokens, window = 60_000, 16
    sequences = data.draw(st.integers(0, 400))
    steps = targets_read(config(window, 4, 3, **keys), n_tokens, 60, (seen, sequences))
    targets = [target for step in steps for target in step]
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("keys", CURRICULA, ids=["off", "seq_len", "batch", "both"])
@pytest.mark.parametrize("epochs", [0.001, 0.7, 2.0, 11.3])
def test_epochs_become_as_many_steps_as_they_take(keys: dict[str, Any], epochs: float) -> None:
    made = config(16, 4, 3, **keys)
    made = msgspec.structs.replace(made, train=msgspec.structs.replace(made.train, max_steps=None, max_epochs=epochs))
    steps = resolve_steps(made, 1200)
    sizes = stepped(made)
    assert steps == sum(1 for _ in iter(lambda: next(sizes)[0] < epochs * 1200, False))
    if not keys:
        assert steps == max(1, math.ceil(epochs * 1200 / (16 * 4 * 3)))


# Learning rate and memory


def test_without_a_curriculum_the_schedule_counts_steps() -> None:
    curriculum = Curriculum.of(config())
    assert not curriculum.is_on
    assert [curriculum.schedule_step(step, 777, 30) for step in (1, 2, 30)] == [(1, 30), (2, 30), (30, 30)]
    assert curriculum.lr_factor(777) == 1.0


@pytest.mark.parametrize("keys", CURRICULA[1:], ids=["seq_len", "batch", "both"])
def test_with_one_it_counts_full_steps_worth_of_tokens(keys: dict[str, Any]) -> None:
    curriculum, full = Curriculum.of(config(16, 4, 3, **keys)), 16 * 4 * 3
    n_steps = 200
    seen = [curriculum.tokens_after(0, step) for step in range(n_steps)]
    places = [curriculum.schedule_step(step + 1, n, n_steps) for step, n in enumerate(seen)]
    assert places == [(n // full + 1, seen[-1] // full + 1) for n in seen]
    assert places[-1][0] == places[-1][1] < n_steps, "the last step is at the schedule's end"


@pytest.mark.parametrize(("scaling", "exponent"), [("none", 0.0), ("sqrt", 0.5), ("linear", 1.0)])
def test_learning_rate_follows_the_batch(scaling: str, exponent: float) -> None:
    keys = {"batch_start_sequences": 2, "batch_warmup_tokens": 50_000, "batch_lr_scaling": scaling}
    curriculum = Curriculum.of(config(128, 4, 8, **keys))
    for stage in curriculum.stages:
        assert curriculum.lr_factor(stage.first_token) == pytest.approx((stage.sequences / 32) ** exponent, rel=1e-15)
    assert curriculum.lr_factor(10**9) == 1.0


def test_memory_is_that_of_the_largest_stage() -> None:
    keys = {"seq_len_start": 16, "seq_len_warmup_tokens": 10**6, "batch_start_sequences": 1, "batch_warmup_tokens": 99}
    with_both, without = (estimate(made, kind="cuda") for made in (config(128, 8, 4, **keys), config(128, 8, 4)))
    assert with_both == without
    assert with_both is not None
    assert with_both.parts["activations"] > MIB


# Refusals


@pytest.mark.parametrize(
    ("keys", "key", "words", "fix"),
    [
        ({"seq_len_start": 128, "seq_len_warmup_tokens": 9}, "seq_len_start", "not below train.seq_len = 128", "lower"),
        ({"seq_len_start": 500, "seq_len_warmup_tokens": 9}, "seq_len_start", "not below train.seq_len = 128", "lower"),
        ({"seq_len_start": 48, "seq_len_warmup_tokens": 9}, "seq_len_start", "does not divide", "set it to 32"),
        ({"seq_len_start": 64}, "seq_len_warmup_tokens", "is 0, so schedule.seq_len_start = 64 does nothing", "to 0"),
        ({"seq_len_warmup_tokens": 9}, "seq_len_start", "is 0, so schedule.seq_len_warmup_tokens = 9 does", "to 0"),
        ({"batch_start_sequences": 4}, "batch_warmup_tokens", "is 0, so schedule.batch_start_sequences = 4", "to 0"),
        ({"batch_warmup_tokens": 4}, "batch_start_sequences", "is 0, so schedule.batch_warmup_tokens = 4", "to 0"),
        ({"batch_start_sequences": 16, "batch_warmup_tokens": 1}, "batch_start_sequences", "not below", "lower"),
        ({"batch_start_sequences": 3, "batch_warmup_tokens": 1}, "batch_start_sequences", "neither", "set it to 2"),
        ({"batch_start_sequences": 9, "batch_warmup_tokens": 1}, "batch_start_sequences", "neither", "set it to 8"),
        ({"batch_lr_scaling": "sqrt"}, "batch_lr_scaling", "a batch that never grows", "leave it out"),
    ],
)
def test_refusals(keys: dict[str, Any], key: str, words: str, fix: str) -> None:
    found = list(problems(config(128, 8, 2, **keys)))
    assert [problem.key for problem in found] == [f"schedule.{key}"]
    assert words in found[0].what
    assert fix in found[0].fix
    assert "\n" not in found[0].what + found[0].fix


def test_parts_of_a_window_keep_its_answer_mask() -> None:
    """Targets of all parts together are the targets of the whole window, scored or not."""
    rng = np.random.default_rng(1)
    tokens = TokenArray([np.arange(500, dtype=np.uint16)], [rng.integers(0, 2, 500).astype(np.uint8)])
    order = SampleOrder(500, 16, 3)
    x, y = batch(tokens, order, 5, 4)
    parts = [batch(tokens, order, 5, 4, (4, part)) for part in range(4)]
    assert np.array_equal(np.concatenate([part_x for part_x, _ in parts], axis=1), x)
    assert np.array_equal(np.concatenate([part_y for _, part_y in parts], axis=1), y)
    assert 0 < (y == NOT_SCORED).sum() < y.size
