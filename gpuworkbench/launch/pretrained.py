"""`train.init_from` of a new run: find the weights, take the model's sizes from them, remember which they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gpuworkbench.config.loader import apply_overrides, build, merge, where_of
from gpuworkbench.config.presets import Request
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError
from gpuworkbench.hf.folder import Description, Weights, describe, identity_of, weight_files
from gpuworkbench.launch.hub_weights import HUB_PREFIX, fetch_model

OnProgress = Callable[[str, float | None], None]


def with_pretrained(asked: Request, init_from: str, on_progress: OnProgress | None = None) -> RunConfig:
    """The config with sizes, absolute path and identity of the weights that `init_from` names.

    Sizes that are written nowhere are taken from config.json; one that is written must agree with it. Headers are
    checked against the model: nothing is left to refuse but the values. Raises ConfigError, DataError.
    """
    report = on_progress or (lambda stage, fraction: None)
    is_remote = init_from.startswith(HUB_PREFIX)
    folder = fetch_model(init_from, report) if is_remote else absolute_folder(init_from)
    described = describe(folder)
    table = apply_overrides(asked.table, asked.overrides)
    table = merge(table, {"model": _sizes(asked, table.get("model", {}), described)})
    # Its own identity is written last: a config without one counts as not resolved.
    table = merge(table, {"train": {"init_from": str(folder), "init_sha256": ""}})
    config = build(table, asked.where, asked.overrides)
    with Weights(folder, described.layout, config.model):
        pass
    digest = _identity(folder, report)
    return build(merge(table, {"train": {"init_sha256": digest}}), asked.where, asked.overrides)


def absolute_folder(text: str) -> Path:
    """The folder as a run stores it. Raises ConfigError for an unknown user's home."""
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError:
        raise ConfigError(f"train.init_from = {text!r}: there is no such user", "give the whole path") from None


def _sizes(asked: Request, written: dict[str, object], described: Description) -> dict[str, object]:
    """The [model] keys that config.json decides. Raises ConfigError where a written one disagrees."""
    sizes: dict[str, object] = {}
    family = described.layout.model_type
    for size in described.sizes:
        value = written.get(size.key)
        if value not in (None, 0, size.value):  # 0: the tokenizer's vocabulary, which must fit into the model's
            key = f"model.{size.key}"
            raise ConfigError(
                f"{where_of(asked.overrides, key, asked.where)}: {key} = {value}, but {described.folder} has "
                f"{size.published} = {size.value}",
                f"--set {key}={size.value}, or use a preset that leaves the sizes open, such as gpt2_finetune",
            )
        sizes[size.key] = size.value
    return {"family": family, **sizes}


def _identity(folder: Path, report: OnProgress) -> str:
    paths = weight_files(folder)
    total, done = sum(path.stat().st_size for path in paths), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        report(f"hashing {folder}", done / max(total, 1))

    return identity_of(paths, on_bytes)
