"""The sample order: a bijection in every epoch, a pure function, independent of how it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.data import SampleOrder, TokenArray, batch, validation_batch
from gpuworkbench.data import order as order_module
from gpuworkbench.data.order import IntArray, permute

STORED_STARTS = [938313, 871497, 201801, 214345, 249929, 145256]  # the last is in the second epoch


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_permutation_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


def test_permutation_works_far_beyond_memory() -> None:
    n = 10**12
    indices = np.array([0, 1, n // 2, n - 1])
    images = permute(indices, n, 3, 4)
    assert len(set(images.tolist())) == 4
    assert ((images >= 0) & (images < n)).all()


def test_permutation_refuses_an_index_outside() -> None:
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5]), 5, 0, 0)


def test_permutation_is_roughly_uniform() -> None:
    """Chi-squared over where one index goes under 4,096 keys; 63 degrees of freedom, mean 63, std about 11."""
    cells = np.concatenate([permute(np.array([17]), 64, seed, 0) for seed in range(4096)])
    counts = np.bincount(cells, minlength=64)
    assert ((counts - 64) ** 2 / 64).sum() < 63 + 6 * 11.3


def test_neighbours_are_not_kept_together() -> None:
    order = permute(np.arange(10_000), 10_000, 1, 1)
    assert (np.abs(np.diff(order)) == 1).sum() < 20  # 2 are expected of a random permutation
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05  # 5 standard deviations


@settings(max_examples=100, deadline=None)
@given(seq_len=st.integers(1, 40), extra=st.integers(1, 2000), seed=st.integers(0, 99), epoch=st.integers(0, 50))
def test_every_window_of_an_epoch_once_and_inside(seq_len: int, extra: int, seed: int, epoch: int) -> None:
    order = SampleOrder(seq_len + extra, seq_len, seed)
    starts = np.sort(order.starts(epoch, np.arange(order.n_windows)))
    assert (np.diff(starts) == seq_len).all()
    assert starts[0] == order.offset(epoch)
    assert starts[0] >= 0
    assert starts[-1] + seq_len + 1 <= order.n_tokens
    assert order.n_tokens - order.n_windows * seq_len <= 2 * seq_len  # at most the play and a partial window stay out


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=12), start=st.integers(0, 500))
def test_order_does_not_depend_on_chunking(cuts: list[int], start: int) -> None:
    """Any batching, across epoch boundaries, gives the same sequences: what makes a mid-epoch resume exact."""
    order = SampleOrder(1000, 16, 7)
    position, parts = start, []
    for count in cuts:
        parts.append(order.starts_at(position, count))
        position += count
    assert np.array_equal(np.concatenate(parts), order.starts_at(start, sum(cuts)))


def test_epochs_differ_in_order_and_offset() -> None:
    order = SampleOrder(100_000, 64, 0)
    indices = np.arange(order.n_windows)
    assert not np.array_equal(order.starts(0, indices), order.starts(1, indices))
    assert len({order.offset(epoch) for epoch in range(200)}) > 40


def test_seeds_differ_and_equal_seeds_agree() -> None:
    first, again, other = (SampleOrder(10_000, 16, seed).starts_at(0, 50).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_order_is_the_stored_one() -> None:
    """A change here breaks the resume of every existing run."""
    assert SampleOrder(1_000_000, 256, 1337).starts_at(3900, 6).tolist() == STORED_STARTS


def test_batch_is_inputs_and_shifted_targets() -> None:
    tokens = TokenArray([np.arange(0, 700, dtype=np.uint16), np.arange(700, 1000, dtype=np.uint16)])
    order = SampleOrder(1000, 16, 3)
    x, y = batch(tokens, order, 55, 8)
    assert x.shape == y.shape == (8, 16)
    assert x.dtype == y.dtype == np.int64
    assert np.array_equal(y, x + 1)  # token i is i
    assert np.array_equal(x[:, 0], order.starts_at(55, 8))
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous


def test_validation_batches_are_contiguous_from_the_start() -> None:
    tokens = TokenArray([np.arange(101, dtype=np.uint16)])
    inputs = [validation_batch(tokens, index, 2, 10)[0] for index in range(5)]
    assert np.array_equal(np.concatenate(inputs).ravel(), np.arange(100))
    with pytest.raises(ValueError, match="beyond"):
        validation_batch(tokens, 5, 2, 10)


def test_too_few_tokens_for_a_window() -> None:
    with pytest.raises(ValueError, match="16 tokens hold no window"):
        SampleOrder(16, 16, 0)
    assert SampleOrder(17, 16, 0).starts_at(0, 3).tolist() == [0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), data=st.data())
def test_token_array_equals_concatenation(sizes: list[int], data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 60_000, size, dtype=np.uint16) for size in sizes]
    whole = np.concatenate(parts).astype(np.int64)
    tokens = TokenArray(parts)
    assert len(tokens) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    assert np.array_equal(tokens.slice(start, length), whole[start : start + length])
    with pytest.raises(IndexError):
        tokens.slice(start, len(whole) - start + 1)


class CountedTokens:
    """As many tokens as 10**13, and a note of every slice asked for."""

    def __init__(self) -> None:
        self.slices: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 10**13

    def slice(self, start: int, length: int) -> IntArray:
        self.slices.append((start, length))
        return np.arange(start, start + length)

    def scored(self, start: int, length: int) -> None:
        return None


@pytest.mark.parametrize("part", [None, (16, 3)])
@pytest.mark.parametrize("position", [0, 10**6 * 8, 10**15 - 3])
def test_a_batch_costs_the_same_at_any_position(
    monkeypatch: pytest.MonkeyPatch, position: int, part: tuple[int, int] | None
) -> None:
    """Operations, counted: one slice a sequence, and one block of permuted numbers, rarely two."""
    permuted, feistel = [], order_module._feistel

    def counting(values: np.ndarray, *rest: Any) -> np.ndarray:
        permuted.append(values.size)
        return feistel(values, *rest)

    monkeypatch.setattr(order_module, "_feistel", counting)
    order_module._block.cache_clear()
    tokens = CountedTokens()
    batch(tokens, SampleOrder(len(tokens), 128, 5), position, 8, part)
    assert [length for _, length in tokens.slices] == [(part[0] if part else 128) + 1] * 8
    assert 1 <= sum(permuted) <= 2 * order_module.BLOCK_SEQUENCES
