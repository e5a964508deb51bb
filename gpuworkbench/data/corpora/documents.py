"""Documents as streams of text chunks, so that a corpus is never one string in memory.

Chunks are cut where no tokenizer's split pattern can reach across (a line end between two non-blank lines, before a
letter or digit of any script; without one, the single space between two words), so the tokens of a document do not
depend on how it was cut.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from gpuworkbench.data.corpora.compressed import READ_ERRORS, format_of, is_compressed, open_data
from gpuworkbench.data.location import unreadable
from gpuworkbench.errors import DataError

CHUNK_CHARS = 256 * 1024
_BINARY_PROBE_BYTES = 8 * 1024
# Not before a slash, which o200k_base joins to the line end. Carriage returns are no line ends here: GPT-2's pattern
# takes "\r\n" apart inside of a text and leaves it whole at its end.
_AFTER_LINE = re.compile(r"(?<=\S\n)(?=[^\W_])")
_BEFORE_WORD = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")
_BOM = "\ufeff"
_REMEDIES = {
    "gzip": "name it .gz (.txt.gz, .jsonl.gz)",
    "parquet": "name it .parquet",
    "zip": "unpack it first",
}


class Mark(NamedTuple):
    """What one chunk is to the loss and to the token stream."""

    scored: bool = True  # its tokens are targets
    ends: bool = False  # an end-of-text token follows it, scored as the chunk is


class Document(NamedTuple):
    """One text. Documents of one `group` stay in one split: they share content.

    With `marks`, one a chunk, only the marked chunks are scored, chunks are encoded each by itself, and the document
    is never cut in two; the end-of-text token before it is scored as its first chunk is. Without, all of it is scored.
    """

    group: str
    n_bytes: int  # of the whole text in UTF-8, as far as it is known beforehand
    chunks: Iterable[str]
    marks: Sequence[Mark] | None = None


class TextCorpus(Protocol):
    """A source of documents. Opening one only looks at names and sizes; reading may raise DataError."""

    @property
    def description(self) -> str:
        """The source in a few words."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the texts may have changed."""
        ...

    @property
    def n_bytes(self) -> int:
        """Size of the text, for progress and sampling; may be an estimate."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was left out, in one line each."""
        ...

    def count_groups(self) -> int:
        """How many groups of documents there are; may read the data."""
        ...

    def documents(self) -> Iterator[Document]:
        """All documents, in the same order every time."""
        ...


def fingerprint_of(*parts: object) -> str:
    """A hash of the parts' text forms."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8", "surrogateescape")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def looks_binary(head: bytes) -> int | None:
    """Offset of the first NUL byte in a file's beginning, None for what can be text."""
    offset = head[:_BINARY_PROBE_BYTES].find(b"\0")
    return offset if offset >= 0 else None


def chunked(text: str) -> Iterator[str]:
    """Cut a long text into chunks of at most about CHUNK_CHARS, at safe places where there are any."""
    start = 0
    while len(text) - start > CHUNK_CHARS:
        end = _cut_before(text, start, start + CHUNK_CHARS)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def file_chunks(path: Path) -> Iterator[str]:
    """A UTF-8 file as chunks. DataError names the offset of the first byte that is not UTF-8; a BOM is dropped."""
    with open_data(path) as stream:
        decoder = codecs.getincrementaldecoder("utf-8")()
        carry, consumed = "", 0
        while True:
            try:
                block = stream.read(CHUNK_CHARS)
            except READ_ERRORS as error:
                raise unreadable(path, error) from error
            if consumed == 0 and (nul := looks_binary(block)) is not None:
                raise looks_like(path, block) or DataError(
                    f"{path} looks binary (NUL byte at offset {nul})", "data must be UTF-8 text"
                )
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                if consumed == 0 and (other := looks_like(path, block)) is not None:
                    raise other from error
                offset = consumed - pending + error.start
                raise not_utf8(path, offset) from error
            if consumed == 0:
                text = text.removeprefix(_BOM)
            consumed += len(block)
            carry += text
            if not block:
                break
            while len(carry) > CHUNK_CHARS:  # more than once: a chunk can be shorter than what was read
                end = _cut_before(carry, 0, CHUNK_CHARS)
                yield carry[:end]
                carry = carry[end:]
        yield from chunked(carry)


def not_utf8(path: Path, offset: int) -> DataError:
    """The error for a byte that is not UTF-8; the offset counts decompressed bytes."""
    within = " of its decompressed content" if is_compressed(path) else ""
    return DataError(
        f"{path} is not UTF-8 at byte offset {offset}{within}", "convert it, for example with iconv -t utf-8"
    )


def looks_like(path: Path, head: bytes) -> DataError | None:
    """The error for a file that is a known format under another name, None for anything else."""
    if (name := format_of(head)) is None:
        return None
    return DataError(f"{path} looks like a {name} file", _REMEDIES.get(name, f"decompress it first ({name})"))


def _cut_before(text: str, start: int, limit: int) -> int:
    """The last safe cut in (start, limit]: after a line, else before a word, else `limit`."""
    place = limit
    while (place := text.rfind("\n", start + 1, place)) > start:
        if _AFTER_LINE.match(text, place + 1):
            return place + 1
    place = limit + 1
    while (place := text.rfind(" ", start + 1, place)) > start:
        if _BEFORE_WORD.match(text, place):
            return place
    return limit
