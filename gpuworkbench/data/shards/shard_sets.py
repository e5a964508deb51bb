"""Published sets of token shards by name: found in a local folder or in the hub's cache, else downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data.hub import OnProgress, Wanted, cached_files, fetch
from gpuworkbench.data.location import OFFLINE_FLAGS
from gpuworkbench.data.tokenization.tiktoken_names import tiktoken_tokenizer
from gpuworkbench.errors import DataError

_TRAIN, _VAL = "*_train_*.bin", "*_val_*.bin"
_NUMBER = re.compile(r"(\d+)\.bin$")


@dataclass(frozen=True)
class ShardSet:
    """A dataset repository of shards with about 100M tokens (200 MB) each, the training ones numbered from 1."""

    repo_id: str
    tokenizer: str


SHARD_SETS = {
    "fineweb10B": ShardSet("kjj0/fineweb10B-gpt2", "gpt2"),
    "fineweb100B": ShardSet("kjj0/fineweb100B-gpt2", "gpt2"),
    "finewebedu10B": ShardSet("kjj0/finewebedu10B-gpt2", "gpt2"),
}


def check_tokenizer(config: DataConfig) -> None:
    """DataError where a named set was made with another tokenizer than `data.tokenizer`."""
    made_with = SHARD_SETS[config.source].tokenizer
    if config.tokenizer != made_with:
        raise DataError(
            f"data.source = {config.source} is made with the {made_with} tokenizer, "
            f"data.tokenizer is {config.tokenizer!r}",
            f"set data.tokenizer={made_with}",
        )


def local_folders(name: str, root: Path) -> tuple[Path, Path]:
    """Where a person may have put a set's shards; they come before any download."""
    return root / name, platformdirs.user_data_path("gpuworkbench", appauthor=False) / name


def hub_shards(config: DataConfig, on_progress: OnProgress) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The first `data.shards` training shards (default 1) and the validation shards, downloaded where not cached.

    Raises DataError, DoesNotFitError as `hub.fetch`.
    """
    shard_set, n_shards = SHARD_SETS[config.source], config.shards or 1
    train, val = cached_shards(config.source)
    if len(train) >= n_shards and val:
        return train[:n_shards], val
    tiktoken_tokenizer(shard_set.tokenizer)  # a vocabulary that cannot be had is told before megabytes are fetched
    there = f"--set data.shards={len(train)} (cached), or " if train and val else ""
    paths = fetch(
        shard_set.repo_id,
        [Wanted(_TRAIN, limit=n_shards), Wanted(_VAL)],
        "dataset",
        on_progress,
        instead=f"use {there}{OFFLINE_FLAGS}",
    )
    return _split(paths)


def cached_shards(name: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The set's shards in the hub's cache: training ones without a gap from the first on, validation ones."""
    train, val = (cached_files(SHARD_SETS[name].repo_id, pattern, "dataset") for pattern in (_TRAIN, _VAL))
    numbers = [_number(path) for path in train]
    whole = [path for place, path in enumerate(train) if numbers[place] == place + 1]
    return tuple(whole), tuple(val)


def take(name: str, train: tuple[Path, ...], n_shards: int | None) -> tuple[Path, ...]:
    """The first `data.shards` of a folder's training shards; all where the key is not set. DataError for too few."""
    if n_shards is not None and n_shards > len(train):
        raise DataError(
            f"data.shards = {n_shards}, {name} holds {len(train)} training shards", f"set data.shards <= {len(train)}"
        )
    return train[:n_shards]


def _split(paths: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    train = tuple(path for path in paths if path.match(_TRAIN))
    return train, tuple(path for path in paths if path.match(_VAL))


def _number(path: Path) -> int | None:
    match = _NUMBER.search(path.name)
    return int(match.group(1)) if match else None
