"""The tokens of a step stay, whatever micro-batch fits."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.config.accumulation import same_tokens
from gpuworkbench.config.presets import load_preset
from gpuworkbench.config.schema import RunConfig


def config_of(micro_batch_size: int, grad_accum_steps: int) -> RunConfig:
    config = load_preset("quickstart").config
    replace = msgspec.structs.replace
    return replace(
        config,
        train=replace(config.train, micro_batch_size=micro_batch_size, grad_accum_steps=grad_accum_steps),
    )


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [((8, 1), 4, (4, 2)), ((8, 1), 3, (2, 4)), ((5, 2), 4, (2, 5)), ((7, 1), 6, (1, 7)), ((4, 4), 64, (16, 1))],
)
def test_it_is_the_largest_that_divides(before: tuple[int, int], wanted: int, after: tuple[int, int]) -> None:
    assert same_tokens(config_of(*before), wanted) == after


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 128))
def test_the_sequences_of_a_step_stay(size: int, accum: int, wanted: int) -> None:
    found = same_tokens(config_of(size, accum), wanted)
    assert found.micro_batch_size * found.grad_accum_steps == size * accum
    assert found.micro_batch_size <= wanted


def test_none_is_a_programmer_error() -> None:
    with pytest.raises(ValueError, match="micro-batch of 0"):
        same_tokens(config_of(8, 1), 0)
