"""Bytes of every storage, against sums done by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.optimizers import optimizer_state_bytes
from gpuworkbench.config.schema import DeviceConfig, MemoryConfig, OptimizerConfig, RunConfig
from gpuworkbench.config.storage import UPDATE_ELEMENTS, UPDATE_SCRATCH_BYTES, storage_bytes
from gpuworkbench.units import GIB, MIB

ONE_B = Gpt2Config(n_layer=32, n_embd=1536, n_head=12, seq_len=1024, vocab_size=50_257)
P = ONE_B.n_allocated_params()


def config(model: Gpt2Config = ONE_B, optimizer: str = "adamw", **memory: Any) -> RunConfig:
    return RunConfig(
        schema_version=1, model=model, memory=MemoryConfig(**memory), optimizer=OptimizerConfig(name=optimizer)
    )


def test_fp32_is_sixteen_bytes() -> None:
    found = storage_bytes(config())
    assert found == (4 * P, 4 * P, 8 * P, 0, 0, 0)
    assert found.device_bytes == 16 * P


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor", "sgd"])
def test_each_optimizer_as_the_planner_counts_it(name: str) -> None:
    plain, half = config(optimizer=name), config(optimizer=name, weights="bf16")
    expected = optimizer_state_bytes(plain.optimizer, ONE_B.parameter_shapes())
    assert storage_bytes(plain).optimizer_state == expected
    assert storage_bytes(half) == (2 * P, 2 * P, expected // 2, 0, 0, 0)


def test_stochastic_rounding_is_eight_bytes_and_a_little_scratch() -> None:
    found = storage_bytes(config(weights="bf16", stochastic_rounding=True))
    assert found == (2 * P, 2 * P, 4 * P, 0, UPDATE_ELEMENTS * UPDATE_SCRATCH_BYTES, 0)


def test_packed_is_at_most_seven_point_one_bytes() -> None:
    found = storage_bytes(config(weights="bf16", packed_optimizer=True))
    assert found.weights == found.gradients == 2 * P
    assert found.residual == P
    assert 2 * P + 8 * P / 256 <= found.optimizer_state <= 2 * P + 8 * P / 256 + 8 * 400
    assert (found.device_bytes - found.staging) / P <= 7.1
    assert found.staging == 32 * MIB


def test_streamed_with_masters_is_stack_c() -> None:
    found = storage_bytes(config(weights="bf16", optimizer_offload="streamed", offload_bucket_mib=128))
    assert found.weights == 2 * P
    assert found.gradients == 4 * P
    assert found.host_state == 12 * P
    assert 0 <= 256 * MIB - found.staging < 2 * 12 * 4096
    assert found.device_bytes / GIB == pytest.approx(1.83 + 3.67 + 0.25, abs=0.02)


def test_streamed_fp32_keeps_weights_and_gradients() -> None:
    found = storage_bytes(config(optimizer_offload="streamed"))
    assert (found.weights, found.gradients, found.optimizer_state, found.host_state) == (4 * P, 4 * P, 0, 8 * P)
    tiny = Gpt2Config(n_layer=1, n_embd=32, n_head=1, seq_len=16, vocab_size=64)
    assert storage_bytes(config(tiny, optimizer_offload="streamed")).staging == 8 * tiny.n_allocated_params()


def test_predict_aware_needs_the_state_once_more_on_the_host() -> None:
    assert storage_bytes(config(optimizer_offload="predict_aware")).host_state == 8 * P
    packed = storage_bytes(config(weights="bf16", packed_optimizer=True, optimizer_offload="predict_aware"))
    assert packed.host_state == packed.optimizer_state + packed.residual


def test_gradients_that_are_freed_in_backward() -> None:
    """The token table's from its first use to its last, and one more: the table's own second part."""
    eager = config(weights="bf16", packed_optimizer=True, optimizer_in_backward=True)
    table = ONE_B.padded_vocab_size * ONE_B.n_embd
    assert storage_bytes(eager).gradients == 2 * 2 * table
    compiled = msgspec.structs.replace(eager, device=DeviceConfig(compile="default"))
    assert storage_bytes(compiled).gradients == 2 * P
