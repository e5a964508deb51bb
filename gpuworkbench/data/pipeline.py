"""From documents to token shards: batches of text, encoded on all cores, written in order.

One thread reads, cleans, cuts batches and writes; worker threads encode, since tokenizers let go of the interpreter
while they work. What is written depends on the text alone: not on the number of workers, nor on interruptions. An
interrupted preparation reads again from the beginning, skips encoding what is on the disk, and checks by a hash that
the text is still the one that was encoded.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from gpuworkbench.data.corpora.documents import Mark, TextCorpus
from gpuworkbench.data.encoding import Progress
from gpuworkbench.data.partial import Journal, Saved, StaleProgressError
from gpuworkbench.data.shards.shard_file import variant_for
from gpuworkbench.data.shards.split_writer import SplitWriter
from gpuworkbench.data.split import Split, Splitter
from gpuworkbench.data.tokenization.tokenizer import Ids, Tokenizer

BATCH_CHARS = 1024 * 1024
_PIECE_CHARS = 64  # what a piece counts beside its text: of tiny records, batches would else be mostly objects
SAVE_INTERVAL_S = 5.0
_PLAIN = Mark()
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Pace:
    """What was encoded now, not taken over from an interrupted preparation: for tokens a second. `kept_bytes` is how
    much text an interruption would leave encoded on the disk."""

    n_tokens: int = 0
    seconds: float = 0.0
    kept_bytes: int = 0


class Piece(NamedTuple):
    """A chunk on its way."""

    split: Split
    starts: bool  # a document, or the part of it that lies in this split
    text: str
    mark: Mark | None  # None: the document has none


class Batch(NamedTuple):
    """About BATCH_CHARS of text."""

    pieces: list[Piece]
    n_documents: int  # that begin here


class Tokens(NamedTuple):
    """A batch's tokens of one split: ids (N,), and which are scored (N,), None for all."""

    ids: npt.NDArray[np.integer]
    scored: npt.NDArray[np.bool_] | None


class Encoded(NamedTuple):
    """A batch, or only its hash where it was encoded before."""

    n_documents: int
    n_bytes: int
    digest: bytes
    tokens: dict[Split, Tokens]


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def encode_corpus(
    corpus: TextCorpus,
    splitter: Splitter,
    tokenizer: Tokenizer,
    writers: dict[Split, SplitWriter],
    on_progress: Progress,
    *,
    workers: int | None = None,
    journal: Journal | None = None,
    pace: Pace | None = None,
) -> int:
    """Write every document, an end-of-text token before each (as in published shards). Returns their number.

    With marks, which tokens are scored goes into the splits' answer masks. With a `journal`, goes on after what it
    has saved, and saves every few seconds. Raises StaleProgressError where the text is not the one saved.
    """
    saved = journal.saved if journal is not None else None
    pace = pace if pace is not None else Pace()
    n_skipped = saved.n_batches if saved is not None else 0
    dtype: np.dtype[np.integer] = np.dtype(variant_for(tokenizer.vocab_size).dtype)
    chain, n_documents, done_bytes, n_batches = b"", 0, 0, 0
    started = saved_at = time.monotonic()
    is_whole = True  # the writers hold whole batches

    def encode(numbered: tuple[int, Batch]) -> Encoded:
        number, batch = numbered
        return encode_batch(batch, tokenizer, dtype, skip=number < n_skipped)

    def save() -> None:
        if journal is not None and n_batches > n_skipped:
            saved_now = Saved.of(
                journal.key,
                n_batches=n_batches,
                n_bytes=done_bytes,
                chain=chain,
                tokenizer=tokenizer,
                writers=writers,
            )
            journal.save(saved_now)
            pace.kept_bytes = done_bytes

    batches = in_order(encode, enumerate(cut_batches(corpus, splitter)), workers or default_workers())
    try:
        for encoded in batches:
            chain = hashlib.blake2b(chain + encoded.digest, digest_size=32).digest()
            is_whole = False
            for split, tokens in encoded.tokens.items():
                writers[split].append(tokens.ids, tokens.scored)
                pace.n_tokens += len(tokens.ids)
            n_batches, done_bytes, is_whole = n_batches + 1, done_bytes + encoded.n_bytes, True
            n_documents += encoded.n_documents
            if saved is not None and n_batches == n_skipped:
                if chain.hex() != saved.chain:
                    raise StaleProgressError("the text is not the one that was encoded before")
                started = saved_at = time.monotonic()
                pace.kept_bytes = done_bytes
            share = done_bytes / max(corpus.n_bytes, 1)
            stage = "reading what was encoded before" if n_batches < n_skipped else f"encoding with {tokenizer.name}"
            on_progress(stage, share if share <= 1 else None)  # n_bytes may be an estimate
            if time.monotonic() - saved_at >= SAVE_INTERVAL_S:
                save()
                saved_at = time.monotonic()
    except StaleProgressError:
        raise
    except BaseException:
        if is_whole:
            save()
        raise
    finally:
        batches.close()
    if n_batches < n_skipped:
        raise StaleProgressError("the text is shorter than what was encoded before")
    pace.seconds = time.monotonic() - started
    return n_documents


def cut_batches(corpus: TextCorpus, splitter: Splitter) -> Iterator[Batch]:
    """The documents' chunks in batches; where they are cut depends on the text alone."""
    pieces: list[Piece] = []
    n_documents = n_chars = 0
    for document in corpus.documents():
        begun = False
        for split, chunks in splitter.pieces(document):
            starts = True
            for chunk, mark in zip(chunks, document.marks or repeat(None)):  # noqa: B905 - one side is endless
                if not chunk and not (mark and mark.ends):
                    continue
                n_documents += not begun
                begun = True
                pieces.append(Piece(split, starts, chunk, mark))
                starts = False
                n_chars += len(chunk) + _PIECE_CHARS
                if n_chars >= BATCH_CHARS:
                    yield Batch(pieces, n_documents)
                    pieces, n_documents, n_chars = [], 0, 0
    if pieces:
        yield Batch(pieces, n_documents)


def encode_batch(batch: Batch, tokenizer: Tokenizer, dtype: np.dtype[np.integer], *, skip: bool = False) -> Encoded:
    """Tokens of a batch in the shards' own type; with `skip` only its hash."""
    digest, n_bytes = hashlib.blake2b(digest_size=32), 0
    for piece in batch.pieces:
        data = piece.text.encode("utf-8", "surrogatepass")
        digest.update(f"{piece.split}{piece.starts:d}{piece.mark}{len(data)}\n".encode())
        digest.update(data)
        n_bytes += len(data)
    tokens = {} if skip else _tokens_of(batch.pieces, tokenizer, dtype)
    return Encoded(batch.n_documents, n_bytes, digest.digest(), tokens)


def _tokens_of(pieces: list[Piece], tokenizer: Tokenizer, dtype: np.dtype[np.integer]) -> dict[Split, Tokens]:
    eot = np.array([tokenizer.eot_id], dtype=np.uint32)
    ids_of: dict[Split, list[Ids]] = {}
    scored_of: dict[Split, list[bool]] = {}  # an entry for each array of ids
    for piece, ids in zip(pieces, tokenizer.encode_batch([piece.text for piece in pieces]), strict=True):
        arrays, scored = ids_of.setdefault(piece.split, []), scored_of.setdefault(piece.split, [])
        mark = piece.mark or _PLAIN
        if piece.starts:
            arrays.append(eot)
            scored.append(mark.scored)
        arrays.append(ids)
        scored.append(mark.scored)
        if mark.ends:
            arrays.append(eot)
            scored.append(mark.scored)
    return {
        split: Tokens(
            np.concatenate(arrays, dtype=dtype, casting="unsafe"),
            None if all(scored_of[split]) else np.repeat(scored_of[split], [len(array) for array in arrays]),
        )
        for split, arrays in ids_of.items()
    }


def in_order(
    work: Callable[[Item], Result], items: Iterator[Item], workers: int, ahead: int = 2
) -> Generator[Result, None, None]:
    """`map(work, items)` on threads, results in the order of the items; at most `ahead` items wait for each worker."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            while len(waiting) >= workers * ahead or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
