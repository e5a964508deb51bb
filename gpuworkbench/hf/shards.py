"""How weights are spread over files: names, and the index beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpuworkbench.hf.folder import INDEX_FILE, WEIGHTS_FILE
from gpuworkbench.io.safetensors_file import TensorSpec

# What an export writes, and so what a later one may replace.
WEIGHT_FILE_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


class Shard(NamedTuple):
    """One weights file and the tensors in it, in their order."""

    name: str
    specs: tuple[TensorSpec, ...]


def plan_shards(specs: Sequence[TensorSpec], max_bytes: int) -> list[Shard]:
    """One file where everything fits into `max_bytes`, else several of at most that (or of one larger tensor)."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.num_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.num_bytes
    if len(groups) == 1:
        return [Shard(WEIGHTS_FILE, tuple(specs))]
    return [
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for number, group in enumerate(groups, 1)
    ]


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """The content of model.safetensors.index.json."""
    return {
        "metadata": {"total_size": sum(spec.num_bytes for shard in shards for spec in shard.specs)},
        "weight_map": {spec.name: shard.name for shard in shards for spec in shard.specs},
    }


def is_weights_name(name: str) -> bool:
    """Whether an export may have written a file of that name for its weights."""
    return WEIGHT_FILE_NAME.fullmatch(name) is not None or name == INDEX_FILE
