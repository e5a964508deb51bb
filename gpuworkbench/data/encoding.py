"""Which tokenizer: the one `data.tokenizer` names, or one trained on a sample of the text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data.corpora.documents import TextCorpus
from gpuworkbench.data.location import absolute_source
from gpuworkbench.data.split import Splitter
from gpuworkbench.data.tokenization import bpe, ids_tokenizer
from gpuworkbench.data.tokenization.library_tokenizer import LibraryTokenizer
from gpuworkbench.data.tokenization.same_tokenizer import kept_tokenizer
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer, Tokenizer
from gpuworkbench.data.tokenization.tokenizer_files import (
    HUB_PREFIX,
    absolute_tokenizer,
    is_path,
    open_hub_tokenizer,
    open_tokenizer,
)
from gpuworkbench.errors import DataError
from gpuworkbench.io import Files
from gpuworkbench.registry import nearest

Progress = Callable[[str, float | None], None]

_BPE_NAME = re.compile(r"bpe-(\d{1,9})")


def bpe_size(name: str) -> int | None:
    """N of `bpe-N`, None for other names. DataError for an N outside of the range."""
    match = _BPE_NAME.fullmatch(name)
    if match is None:
        return None
    size = int(match.group(1))
    if not bpe.MIN_VOCAB_SIZE <= size <= bpe.MAX_VOCAB_SIZE:
        raise DataError(
            f"data.tokenizer = {name!r}: {size} is not in {bpe.MIN_VOCAB_SIZE}..{bpe.MAX_VOCAB_SIZE}",
            "bpe-8192 is a good start",
        )
    return size


def check_tokenizer_name(name: str) -> None:
    """DataError with the choices for a name that is none of them."""
    from gpuworkbench.data.tokenization.tiktoken_names import encoding_names

    if name in ("byte", ids_tokenizer.NAME) or bpe_size(name) is not None:
        return
    choices = ["byte", "bpe-8192", ids_tokenizer.NAME, *encoding_names()]
    if name not in choices and not is_path(name):
        close = nearest(name, choices)
        suggestion = f"did you mean {close!r}? " if close else ""
        raise DataError(
            f"data.tokenizer = {name!r} is not known",
            f"{suggestion}choices: byte, bpe-N, {', '.join(choices[2:])}, or the path of a tokenizer.json",
        )


def is_known_name(name: str) -> bool:
    """Whether a `data.tokenizer` is a name, not a path. DataError as `bpe_size`."""
    from gpuworkbench.data.tokenization.tiktoken_names import encoding_names

    return name in ("byte", ids_tokenizer.NAME) or bpe_size(name) is not None or name in encoding_names()


def make_tokenizer(
    name: str,
    corpus: TextCorpus | None,
    splitter: Splitter | None,
    on_progress: Progress,
    bin_vocab_size: int | None = None,
) -> tuple[Tokenizer, tuple[str, ...]]:
    """The tokenizer of that name and warnings about it. `bpe-N` is trained on the corpus' training split."""
    if name == "byte":
        return ByteTokenizer(), ()
    if name == ids_tokenizer.NAME:
        if corpus is not None:
            raise DataError("data.tokenizer = ids is for token shards, not for text", "bpe-8192 is a good start")
        if bin_vocab_size is None:
            raise DataError(
                "data.tokenizer = ids does not say how many tokens its vocabulary has",
                "set data.bin_vocab_size, for example --set data.bin_vocab_size=128256",
            )
        return ids_tokenizer.IdsTokenizer(bin_vocab_size), ("data.tokenizer = ids: prompts and samples are token ids",)
    size = bpe_size(name)
    if not is_known_name(name):
        opened = open_tokenizer(Path(name))
        return opened, exactness_warnings(opened)
    if size is None:
        from gpuworkbench.data.tokenization.tiktoken_names import tiktoken_tokenizer

        on_progress(f"loading the {name} vocabulary", None)
        return tiktoken_tokenizer(name, on_progress), ()
    if corpus is None or splitter is None:
        raise DataError(
            f"data.tokenizer = {name!r} cannot be trained on token shards",
            "set data.tokenizer to the one the shards were made with, for example gpt2, or to ids",
        )
    on_progress(f"training {name} on a sample of the text", None)
    trained = bpe.train_bpe(sample_text(corpus, splitter), size)
    return trained, vocabulary_warnings(name, trained)


def vocabulary_warnings(name: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """A line where the text gave a `bpe-N` of fewer than N tokens."""
    size = bpe_size(name)
    if size is None or tokenizer.vocab_size == size:
        return ()
    return (f"{name}: the text is too small for {size} tokens, the vocabulary has {tokenizer.vocab_size}",)


def exactness_warnings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """A line where a tokenizer does not give back what it was given."""
    if not isinstance(tokenizer, LibraryTokenizer) or tokenizer.is_exact:
        return ()
    return (f"{tokenizer.name}: texts do not come back exactly (case, spaces or characters it does not know)",)


def absolute_paths(config: DataConfig) -> DataConfig:
    """The section as a run stores it: paths made absolute, so that a trainer started elsewhere finds them."""
    tokenizer = config.tokenizer
    is_local = "\0" not in tokenizer and is_path(tokenizer) and not tokenizer.startswith(HUB_PREFIX)
    if is_local and not is_known_name(tokenizer):
        tokenizer = absolute_tokenizer(tokenizer)
    return msgspec.structs.replace(config, source=absolute_source(config.source), tokenizer=tokenizer)


def pin_tokenizer(config: DataConfig, root: Path, kept: Path | None, on_progress: Progress, files: Files) -> DataConfig:
    """The config with a tokenizer path replaced by a copy in the cache `root`, named by its hash; names as they are.

    Where the path is gone, the tokenizer that a run keeps in `kept` takes its place; that of a hub name stays as the
    run keeps it, whatever the hub has by now. Raises DataError, OSError.
    """
    if is_known_name(config.tokenizer):
        if config.eot_token is not None:
            raise DataError(
                f"data.eot_token is for a tokenizer.json, data.tokenizer is {config.tokenizer!r}", "leave it out"
            )
        return config
    if config.tokenizer.startswith(HUB_PREFIX):
        tokenizer = kept_tokenizer(kept) or open_hub_tokenizer(config.tokenizer, on_progress, config.eot_token)
    else:
        path = Path(absolute_tokenizer(config.tokenizer))
        own = kept_tokenizer(kept) if not os.path.lexists(path) else None
        tokenizer = own or open_tokenizer(path, config.eot_token)
    copy = Path(os.path.abspath(root)) / "tokenizers" / tokenizer.sha256[:32]
    if kept_tokenizer(copy) is None:
        copy.mkdir(parents=True, exist_ok=True)
        tokenizer.save(copy, files)
    return msgspec.structs.replace(config, tokenizer=str(copy), eot_token=None)


def sample_text(corpus: TextCorpus, splitter: Splitter, limit_bytes: int = bpe.SAMPLE_BYTES) -> Iterator[str]:
    """About `limit_bytes` of the training split, in chunks spread evenly over the corpus."""
    share = min(1.0, limit_bytes / max(corpus.n_bytes, 1))
    seen = kept = 0
    for document in corpus.documents():
        for split, chunks in splitter.pieces(document):
            for chunk in chunks:
                if split != "train":
                    continue
                seen += len(chunk)
                if kept < share * seen:
                    kept += len(chunk)
                    yield chunk
                if kept >= limit_bytes:
                    return
