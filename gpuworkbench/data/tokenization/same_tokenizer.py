"""A run's tokens, weights and texts belong to one tokenizer: refusals that name both sides."""

from __future__ import annotations

from pathlib import Path

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from gpuworkbench.errors import DataError

SHOWN_HASH_CHARS = 12


def kept_tokenizer(folder: Path | None) -> Tokenizer | None:
    """The tokenizer that a run keeps in `folder`; None where there is none or it is damaged."""
    if folder is None:
        return None
    try:
        return load_tokenizer(folder)
    except DataError:
        return None


def named(name: str, sha256: str) -> str:
    """`gpt2 (sha256 1a2b3c4d5e6f)`."""
    return f"{name} (sha256 {sha256[:SHOWN_HASH_CHARS]})"


def check_same_tokenizer(made_with: DataConfig, data: PreparedData, kept: Path | None = None) -> None:
    """DataError where `data` has another tokenizer than the run's weights and tokens were made with.

    The run's is the one whose hash it stores, else the one it keeps; runs without either are not checked.
    """
    own = kept_tokenizer(kept)
    expected = made_with.tokenizer_sha256 or (own.sha256 if own is not None else None)
    if expected is None or data.tokenizer_sha256 == expected:
        return
    name = own.name if own is not None and own.sha256 == expected else made_with.tokenizer
    hint = (
        f"train on with its own: --resume RUN --fork --set data.tokenizer={kept}"
        if own is not None and own.sha256 == expected
        else ""
    )
    retrained = name == data.tokenizer_name and name.startswith("bpe-")
    why = ", trained on text that has changed" if retrained else ""
    raise DataError(
        f"the run was made with the tokenizer {named(name, expected)}, "
        f"data.tokenizer now gives {named(data.tokenizer_name, data.tokenizer_sha256)}{why}",
        hint or "restore the tokenizer, or start a new run",
    )


def load_own_tokenizer(config: DataConfig, folder: Path) -> Tokenizer:
    """The tokenizer that a run keeps. DataError where it is missing, damaged, or not the one its weights know."""
    tokenizer = load_tokenizer(folder)
    if config.tokenizer_sha256 is not None and tokenizer.sha256 != config.tokenizer_sha256:
        raise DataError(
            f"the weights were trained with the tokenizer {named(config.tokenizer, config.tokenizer_sha256)}, "
            f"{folder} holds {named(tokenizer.name, tokenizer.sha256)}",
            "put the run's own back; a resume does, where the data is still there",
        )
    return tokenizer
