"""From documents to token shards: choose the tokenizer, sample text for a BPE, encode in batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import NamedTuple

import numpy as np

from gpuworkbench.data import bpe, ids_tokenizer
from gpuworkbench.data.documents import Mark, TextCorpus
from gpuworkbench.data.split import Split, Splitter
from gpuworkbench.data.split_writer import SplitWriter
from gpuworkbench.data.tokenizer import ByteTokenizer, Ids, Tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.registry import nearest

Progress = Callable[[str, float | None], None]

_BPE_NAME = re.compile(r"bpe-(\d{1,9})")
_BATCH_CHARS = 4 * 1024 * 1024


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
    from gpuworkbench.data.tiktoken_names import encoding_names

    if name in ("byte", ids_tokenizer.NAME) or bpe_size(name) is not None:
        return
    choices = ["byte", "bpe-8192", ids_tokenizer.NAME, *encoding_names()]
    if name not in choices:
        close = nearest(name, choices)
        suggestion = f"did you mean {close!r}? " if close else ""
        raise DataError(
            f"data.tokenizer = {name!r} is not known", f"{suggestion}choices: byte, bpe-N, {', '.join(choices[2:])}"
        )


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
        if corpus is not None or bin_vocab_size is None:
            raise DataError("data.tokenizer = ids is for token shards, not for text", "bpe-8192 is a good start")
        return ids_tokenizer.IdsTokenizer(bin_vocab_size), ("data.tokenizer = ids: prompts and samples are token ids",)
    size = bpe_size(name)
    if size is None:
        from gpuworkbench.data.tiktoken_names import tiktoken_tokenizer

        on_progress(f"loading the {name} vocabulary", None)
        return tiktoken_tokenizer(name), ()
    if corpus is None or splitter is None:
        raise DataError(
            f"data.tokenizer = {name!r} cannot be trained on token shards",
            "set data.tokenizer to the one the shards were made with, for example gpt2, or to ids",
        )
    on_progress(f"training {name} on a sample of the text", None)
    trained = bpe.train_bpe(sample_text(corpus, splitter), size)
    if trained.vocab_size == size:
        return trained, ()
    return trained, (f"{name}: the text is too small for {size} tokens, the vocabulary has {trained.vocab_size}",)


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


class _Piece(NamedTuple):
    split: Split
    starts: bool  # a document, or the part of it that lies in this split
    text: str
    mark: Mark | None  # None: the document has none


_PLAIN = Mark()


def encode_corpus(
    corpus: TextCorpus,
    splitter: Splitter,
    tokenizer: Tokenizer,
    writers: dict[Split, SplitWriter],
    on_progress: Progress,
) -> int:
    """Write every document, an end-of-text token before each (as in published shards). Returns their number.

    With marks, which tokens are scored goes into the splits' answer masks.
    """
    batch: list[_Piece] = []
    n_documents = batch_chars = done_chars = 0
    for document in corpus.documents():
        begun = False
        for split, chunks in splitter.pieces(document):
            starts = True
            for chunk, mark in zip(chunks, document.marks or repeat(None)):  # noqa: B905 - one side is endless
                if not chunk and not (mark and mark.ends):
                    continue
                n_documents += not begun
                begun = True
                batch.append(_Piece(split, starts, chunk, mark))
                starts = False
                batch_chars += len(chunk)
                if batch_chars >= _BATCH_CHARS:
                    _write_batch(batch, tokenizer, writers)
                    done_chars += batch_chars
                    batch_chars = 0
                    on_progress(f"encoding with {tokenizer.name}", min(done_chars / max(corpus.n_bytes, 1), 1.0))
    _write_batch(batch, tokenizer, writers)
    return n_documents


def _write_batch(batch: list[_Piece], tokenizer: Tokenizer, writers: dict[Split, SplitWriter]) -> None:
    """Encode the batch, append it to its splits and empty it."""
    eot = np.array([tokenizer.eot_id], dtype=np.uint32)
    ids_of: dict[Split, list[Ids]] = {split: [] for split in writers}
    scored_of: dict[Split, list[bool]] = {split: [] for split in writers}  # an entry for each array of ids
    for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
        mark = piece.mark or _PLAIN
        arrays = [(eot, mark.scored)] if piece.starts else []
        arrays += [(ids, mark.scored)]
        arrays += [(eot, mark.scored)] if mark.ends else []
        for array, scored in arrays:
            ids_of[piece.split].append(array)
            scored_of[piece.split].append(scored)
    for split, written in ids_of.items():
        if written:
            marks = None if all(scored_of[split]) else np.repeat(scored_of[split], [len(array) for array in written])
            writers[split].append(np.concatenate(written), marks)
    batch.clear()
