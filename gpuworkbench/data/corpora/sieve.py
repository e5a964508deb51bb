"""Which documents are kept: cleaned, long enough, not seen before; and what became of the others.

Duplicates are found by a 128-bit hash of the cleaned text without the white space around it. Of each document that is
kept, 16 bytes stay in memory.
"""

from __future__ import annotations

import hashlib
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data.corpora.cleaning import Cleaner
from gpuworkbench.data.corpora.documents import CHUNK_CHARS, Document, Mark, TextCorpus, chunked
from gpuworkbench.text import safe_text

DIGEST_BYTES = 16
MAX_EXAMPLES = 3
_EXAMPLE_CHARS = 80
_SHELVES = 4096
_HELD_CHARS = 8 * 1024 * 1024  # a longer document waits on the disk while it is measured


class Dropped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Documents left out for one reason."""

    documents: int = 0
    bytes: int = 0  # of their cleaned text in UTF-8
    examples: tuple[str, ...] = ()  # printable: where the document stands, and how it begins


class Sifted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The drop report: `kept` plus every `dropped` is what was read."""

    kept_documents: int
    kept_bytes: int
    changed_documents: int  # whose text cleaning changed, dropped ones included
    dropped: dict[str, Dropped]  # by reason: empty, too short, duplicate


class SeenTexts:
    """A set of hashes in 16 bytes each, with the slack of a bytearray: sorted shelves, searched by halving."""

    def __init__(self) -> None:
        self._shelves = [bytearray() for _ in range(_SHELVES)]

    def add(self, digest: bytes) -> bool:
        """Remember a hash of DIGEST_BYTES; False if it was there already."""
        shelf = self._shelves[int.from_bytes(digest[:2], "big") % _SHELVES]
        size = DIGEST_BYTES
        place = size * bisect_left(
            range(len(shelf) // size), digest, key=lambda index: bytes(shelf[size * index : size * index + size])
        )
        if shelf[place : place + size] == digest:
            return False
        shelf[place:place] = digest
        return True


class CleanCorpus:
    """Another corpus' documents, cleaned and sifted; a `TextCorpus` itself.

    `report` is that of the last pass over all documents. `scratch` is a folder for documents too long for the memory;
    with `exact_sizes` each document's `n_bytes` is that of its cleaned text.
    """

    def __init__(
        self, corpus: TextCorpus, config: DataConfig, *, scratch: Path | None = None, exact_sizes: bool = False
    ) -> None:
        self._corpus = corpus
        self._config = config
        self._scratch = scratch
        self._exact_sizes = exact_sizes
        self.report: Sifted | None = None

    @property
    def description(self) -> str:
        """The source in a few words."""
        return self._corpus.description

    @property
    def fingerprint(self) -> str:
        """The source's: what cleaning does is in the configuration."""
        return self._corpus.fingerprint

    @property
    def n_bytes(self) -> int:
        """Size of the source."""
        return self._corpus.n_bytes

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the source left out."""
        return self._corpus.warnings

    def count_groups(self) -> int:
        """How many groups of documents the source has, dropped ones included."""
        return self._corpus.count_groups()

    def documents(self) -> Iterator[Document]:
        """The documents that are kept. Each must be read before the next is asked for."""
        sieve = _Sieve(self._config, self._scratch, self._exact_sizes)
        try:
            for document in self._corpus.documents():
                if (kept := sieve.sift(document)) is not None:
                    yield kept
            self.report = sieve.report()
        finally:
            sieve.close()


class _Sieve:
    """One pass over the documents."""

    def __init__(self, config: DataConfig, scratch: Path | None, exact_sizes: bool) -> None:
        self._cleaner = Cleaner(clean=config.clean, normalize=config.normalize)
        self._min_chars = config.min_chars
        self._seen = SeenTexts() if config.dedup else None
        self._scratch = scratch
        self._exact_sizes = exact_sizes
        self._passing: _Passing | None = None
        self._kept_documents = self._kept_bytes = self._changed = 0
        self._dropped: dict[str, Dropped] = {}

    def sift(self, document: Document) -> Document | None:
        """The cleaned document, None if it is dropped. The one before must have been read."""
        self._count_passed()
        if document.marks is None and isinstance(document.chunks, tuple) and len(document.chunks) == 1:
            return self._sift_short(document, document.chunks[0])
        measure, n_changed = _Measure(is_hashed=self._seen is not None), self._cleaner.n_changed
        if document.marks is None:
            document = document._replace(chunks=self._cleaner.chunks(document.chunks))
        else:
            document = _in_chunks(document._replace(chunks=map(self._cleaner.text, document.chunks)))
        chunks = measure.watching(iter(document.chunks), document.marks or ())
        held = _Held(self._scratch)
        is_whole = self._seen is not None or self._exact_sizes or document.marks is not None
        while is_whole or measure.n_chars < max(self._min_chars, 1):
            if (chunk := next(chunks, None)) is None:
                break
            held.append(chunk)
        if reason := self._reason(measure.n_bytes, measure.n_chars, measure.digest):
            self._changed += self._cleaner.n_changed > n_changed
            self._drop(reason, document.group, measure.n_bytes, held)
            held.close()
            return None
        self._passing = _Passing(measure, n_changed, held)
        n_bytes = measure.n_bytes if self._exact_sizes else document.n_bytes
        return document._replace(n_bytes=n_bytes, chunks=chain(held, chunks))

    def _sift_short(self, document: Document, raw: str) -> Document | None:
        """`sift` of a document in one chunk, as lines and records are: without what only long ones need."""
        text = self._cleaner.text(raw)
        n_bytes = _size(text)
        self._changed += text != raw
        body = text.strip()
        if reason := self._reason(n_bytes, len(body), lambda: _hashed(_encoded(body)).digest()):
            self._drop(reason, document.group, n_bytes, (text,))
            return None
        self._kept_documents += 1
        self._kept_bytes += n_bytes
        chunks = (text,) if len(text) <= CHUNK_CHARS else tuple(chunked(text))
        return document._replace(n_bytes=n_bytes if self._exact_sizes else document.n_bytes, chunks=chunks)

    def report(self) -> Sifted:
        """What became of the documents so far."""
        self._count_passed()
        return Sifted(
            kept_documents=self._kept_documents,
            kept_bytes=self._kept_bytes,
            changed_documents=self._changed,
            dropped=dict(sorted(self._dropped.items())),
        )

    def _reason(self, n_bytes: int, n_chars: int, digest: Callable[[], bytes]) -> str | None:
        """Why a document is dropped, None if it is kept (and remembered)."""
        if not n_bytes:
            return "empty"
        if n_chars < self._min_chars:
            return "too short"
        return "duplicate" if self._seen is not None and not self._seen.add(digest()) else None

    def _drop(self, reason: str, name: str, n_bytes: int, chunks: Iterable[str]) -> None:
        before = self._dropped.get(reason, Dropped())
        examples = before.examples
        if len(examples) < MAX_EXAMPLES:
            beginning = " ".join(next((chunk for chunk in chunks if chunk), "").lstrip()[:_EXAMPLE_CHARS].split())
            examples += (safe_text(f"{name}: {beginning}" if beginning else name, max_chars=2 * _EXAMPLE_CHARS),)
        self._dropped[reason] = Dropped(documents=before.documents + 1, bytes=before.bytes + n_bytes, examples=examples)

    def close(self) -> None:
        """Give the last document's file back, if it has one."""
        if self._passing is not None:
            self._passing.held.close()

    def _count_passed(self) -> None:
        if self._passing is not None:
            measure, n_changed, held = self._passing
            self._kept_documents += 1
            self._kept_bytes += measure.n_bytes
            self._changed += self._cleaner.n_changed > n_changed
            held.close()
            self._passing = None


def _in_chunks(document: Document) -> Document:
    """A document with marks, its long chunks cut; only the last part of each is followed by an end of text."""
    chunks: list[str] = []
    marks: list[Mark] = []
    for text, mark in zip(document.chunks, document.marks or (), strict=True):
        parts = [text] if len(text) <= CHUNK_CHARS else list(chunked(text))
        chunks += parts
        marks += [mark._replace(ends=False)] * (len(parts) - 1)
        marks.append(mark)
    return document._replace(chunks=chunks, marks=tuple(marks))


class _Passing(NamedTuple):
    """A document that is kept, and perhaps not read to its end yet."""

    measure: _Measure
    n_changed_before: int
    held: _Held


class _Measure:
    """Size and hash of a text that comes in chunks; the same however it is cut."""

    def __init__(self, *, is_hashed: bool) -> None:
        self.n_bytes = 0  # in UTF-8
        self.n_chars = 0  # between the first and the last that are not white space
        self._n_spaces = 0  # since the last that is not
        self._hash = _hashed() if is_hashed else None
        self._settled = self._hash  # as it was after the last character that is not white space

    def watching(self, chunks: Iterable[str], marks: Iterable[Mark]) -> Iterator[str]:
        """The chunks, each measured as it passes, with the mark it has, if any."""
        for chunk, mark in zip_longest(chunks, marks):
            self._add(chunk)
            if self._hash is not None and mark is not None:
                self._hash.update(bytes([0xFF, mark.scored, mark.ends]))  # 0xFF is no byte of UTF-8
                self._settled = self._hash
            yield chunk

    def digest(self) -> bytes:
        """Hash of the text without the white space around it."""
        assert self._settled is not None
        return self._settled.digest()

    def _add(self, chunk: str) -> None:
        self.n_bytes += _size(chunk)
        body = chunk if self.n_chars else chunk.lstrip()
        text = body.rstrip()
        if text:
            self.n_chars += self._n_spaces + len(text)
            self._n_spaces = 0
        if self.n_chars:
            self._n_spaces += len(body) - len(text)
        if self._hash is not None and body:
            self._hash.update(_encoded(text))
            if text:
                self._settled = self._hash.copy()
            self._hash.update(_encoded(body[len(text) :]))


class _Held:
    """Chunks that are read again: in memory while they are few, else in a file that has no name."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._chunks: list[str] = []
        self._n_chars = 0
        self._file: IO[bytes] | None = None
        self._sizes: list[int] = []

    def append(self, chunk: str) -> None:
        """Keep a chunk. Raises OSError where the disk is full."""
        self._n_chars += len(chunk)
        if self._n_chars <= _HELD_CHARS:
            self._chunks.append(chunk)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed when it was read
        data = _encoded(chunk)
        self._file.write(data)
        self._sizes.append(len(data))

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[str]:
        yield from self._chunks
        if self._file is not None:
            self._file.seek(0)
            for size in self._sizes:
                yield self._file.read(size).decode("utf-8", "surrogatepass")


def _hashed(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES)


def _size(text: str) -> int:
    """Bytes in UTF-8."""
    return len(text) if text.isascii() else len(_encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may escape lone surrogates
