"""Sizes as people write them, and how tensors are spread over files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.hf.shards import index_of, is_weights_name, plan_shards
from gpuworkbench.io.safetensors_file import TensorSpec
from gpuworkbench.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("5 G", 5 * 10**9),
        ("1.5MB", 1_500_000),
        ("500MiB", 500 * 2**20),
        ("2GiB", 2**31),
        ("0.5KiB", 512),
        ("1TB", 10**12),
        ("12B", 12),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e9", "5XB", "5GBB", "0", "0.0001KB", "1iB", "٣GB", "9" * 40, "nan"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"size"):
        parse_bytes(text)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 200))
def test_every_tensor_is_in_one_file_of_at_most_the_size(sizes: list[int], limit: int) -> None:
    specs = [TensorSpec(f"t{i}", "U8", (size,), size) for i, size in enumerate(sizes)]
    shards = plan_shards(specs, limit)
    assert [spec for shard in shards for spec in shard.specs] == specs
    assert all(sum(s.num_bytes for s in shard.specs) <= limit or len(shard.specs) == 1 for shard in shards)
    assert all(is_weights_name(shard.name) for shard in shards)
    assert len({shard.name for shard in shards}) == len(shards)
    if len(shards) == 1:
        assert sum(sizes) <= limit or len(sizes) == 1
        assert [shard.name for shard in shards] == ["model.safetensors"]
    else:
        assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = index_of(shards)
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert sorted(index["weight_map"]) == sorted(spec.name for spec in specs)


@pytest.mark.parametrize("name", ["notes.txt", "model.bin", "model-1-of-2.safetensors", "my-model.safetensors"])
def test_other_files_are_not_taken_for_weights(name: str) -> None:
    assert not is_weights_name(name)
