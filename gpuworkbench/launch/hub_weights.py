"""`hf:OWNER/NAME`: a model of the Hugging Face hub, as a folder of the hub's own cache."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from gpuworkbench.data.hub import Wanted, cached_files, fetch
from gpuworkbench.errors import ConfigError
from gpuworkbench.hf.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, describe, weight_files

HUB_PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,100}))?", re.ASCII)
_INSTEAD = "start from a folder: --set train.init_from=DIR, or from random weights: --set train.init_from="
# Small files that a tokenizer is read from, where the repository has them: the folder is then complete.
_EXTRAS = (INDEX_FILE, "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def fetch_model(name: str, on_progress: Callable[[str, float | None], None]) -> Path:
    """The folder of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, downloaded where it is not cached yet.

    config.json comes first: a model that cannot be trained is refused before its weights are downloaded. Raises
    ConfigError, DataError where something cannot be had, DoesNotFitError for a full disk.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"train.init_from = {name!r} names no repository", "write hf:OWNER/NAME, such as hf:openai-community/gpt2"
        )
    repo, revision = match["repo"], match["revision"] or "main"

    if (cached := _cached(repo, revision)) is not None:
        return cached

    def get(*wanted: Wanted) -> list[Path]:
        return fetch(repo, wanted, "model", on_progress, revision=revision, instead=_INSTEAD)

    paths = get(Wanted(CONFIG_FILE), *(Wanted(extra, required=False) for extra in _EXTRAS))
    folder = next(path.parent for path in paths if path.name == CONFIG_FILE)
    describe(folder)
    if get(Wanted(WEIGHTS_FILE, required=False)):
        return folder
    if not (folder / INDEX_FILE).exists():
        raise ConfigError(
            f"{name} has no {WEIGHTS_FILE}; pickled weights can run code when they are opened",
            "take a copy with safetensors, or convert one (transformers: model.save_pretrained)",
        )
    get(*(Wanted(path.name) for path in weight_files(folder)))
    return folder


def _cached(repo: str, revision: str) -> Path | None:
    """The folder in the hub's cache, where it is complete: then nothing is asked of the network."""
    for path in cached_files(repo, CONFIG_FILE, revision=revision):
        with contextlib.suppress(ConfigError):  # no weights beside it yet
            if all(file.is_file() for file in weight_files(path.parent)):
                return path.parent
    return None
