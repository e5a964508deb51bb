"""Training or validation: by document where there are many, by each document's end where there are few."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from gpuworkbench.data.corpora.documents import Document, TextCorpus

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
_MIN_EXPECTED_VAL_DOCUMENTS = 8  # below this, chance decides too much of what the validation split holds


@dataclass(frozen=True)
class Splitter:
    """A pure function of a document's group, `data.seed` and `data.val_fraction`."""

    val_fraction: float
    seed: int
    by_document: bool
    val_groups: frozenset[str] | None = None  # where few documents are never cut in two: the held out ones

    def pieces(self, document: Document) -> Iterator[tuple[Split, Iterable[str]]]:
        """The document's chunks with the split they belong to; a text cut in two has two pieces."""
        if self.by_document or document.marks is not None:
            yield self.of_group(document.group), document.chunks
        else:
            yield from _cut_tail(document, round(document.n_bytes * (1 - self.val_fraction)))

    def of_group(self, group: str) -> Split:
        """The split of all documents of a group."""
        if self.val_groups is not None:
            return "val" if group in self.val_groups else "train"
        return "val" if _word_of(group, self.seed) < self.val_fraction * 2**64 else "train"


def splitter_for(corpus: TextCorpus, val_fraction: float, seed: int) -> Splitter:
    """By document if about 8 or more would be held out, else the end of every document is held out.

    Documents with marks (a conversation, a prompt with its answer) are always held out whole; of few, those with the
    smallest hashes, so that their number is exact.
    """
    if _has_groups(corpus, _MIN_EXPECTED_VAL_DOCUMENTS / val_fraction):
        return Splitter(val_fraction, seed, by_document=True)
    whole = sorted(document.group for document in corpus.documents() if document.marks is not None)
    n_val = min(max(1, round(len(whole) * val_fraction)), len(whole) - 1) if whole else 0
    held_out = sorted(whole, key=lambda group: _word_of(group, seed))[:n_val]
    return Splitter(val_fraction, seed, by_document=False, val_groups=frozenset(held_out))


def _has_groups(corpus: TextCorpus, wanted: float) -> bool:
    """Whether so many groups are kept: counted until there are enough, since dropped ones decide nothing."""
    if corpus.count_groups() < wanted:
        return False
    found: set[str] = set()
    for document in corpus.documents():
        found.add(document.group)
        if len(found) >= wanted:
            return True
    return False


def _word_of(group: str, seed: int) -> int:
    text = f"{seed}/{group}".encode("utf-8", "surrogateescape")
    (word,) = struct.unpack("<Q", hashlib.blake2b(text, digest_size=8, person=b"split").digest())
    return int(word)


def _cut_tail(document: Document, boundary: int) -> Iterator[tuple[Split, Iterable[str]]]:
    """The text up to about byte `boundary`, then the rest. Lazy: the first piece must be read before the second."""
    chunks = iter(document.chunks)
    rest: list[str] = []

    def head() -> Iterator[str]:
        seen = 0
        for chunk in chunks:
            size = len(chunk.encode())
            if seen + size >= boundary:
                cut = _cut_after(chunk, boundary - seen)
                rest.append(chunk[cut:])
                yield chunk[:cut]
                return
            seen += size
            yield chunk

    def tail() -> Iterator[str]:
        yield from rest
        yield from chunks

    yield "train", head()
    yield "val", tail()


def _cut_after(chunk: str, byte_offset: int) -> int:
    """Index after the first line end, else after the first space, at or after `byte_offset` of the UTF-8 form."""
    index = len(chunk.encode()[: max(byte_offset, 0)].decode(errors="ignore"))
    for mark in ("\n", " "):
        if 0 <= (found := chunk.find(mark, index)) < len(chunk) - 1:
            return found + 1
    return index
