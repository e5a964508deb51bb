"""Cutting a text file into documents: whole, by paragraph or by line.

What is cut out has no blank line or line end around it, so that equal paragraphs are equal wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from gpuworkbench.data.corpora.compressed import READ_ERRORS, open_data
from gpuworkbench.data.corpora.documents import Document, chunked
from gpuworkbench.data.location import unreadable
from gpuworkbench.errors import DataError

Cut = Literal["file", "paragraph", "line"]

_LINE_END = re.compile(rb"\r\n?|\n")
_BLANK_LINES = re.compile(rb"(?:\r\n?|\n)[ \t]*(?:\r\n?|\n)[ \t\r\n]*")
MAX_DOCUMENT_CHARS = 64 * 1024 * 1024  # of a line or paragraph, which is held in memory


def cut_documents(name: str, n_bytes: int, chunks: Iterable[str], cut: Cut) -> Iterator[Document]:
    """The documents of one text, named `name:N` by the line they begin at.

    DataError for a line or paragraph of more than MAX_DOCUMENT_CHARS.
    """
    if cut == "file":
        yield Document(name, n_bytes, chunks)
        return
    numbered = enumerate(_lines(name, chunks), start=1)
    for number, text in numbered if cut == "line" else _paragraphs(name, numbered):
        if text and not text.isspace():
            yield Document(f"{name}:{number}", len(text.encode("utf-8", "surrogatepass")), tuple(chunked(text)))


def count_documents(path: Path, cut: Cut) -> int:
    """About how many documents a text file gives, without decoding it."""
    if cut == "file":
        return 1
    mark = _LINE_END if cut == "line" else _BLANK_LINES
    try:
        with open_data(path) as stream:
            return sum(len(mark.findall(block)) for block in iter(lambda: stream.read(1 << 20), b"")) + 1
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def _lines(name: str, chunks: Iterable[str]) -> Iterator[str]:
    """Lines without their ends, as text editors count them: \\n, \\r\\n or \\r."""
    parts: list[str] = []
    size, ended_by_return = 0, False
    for chunk in chunks:
        text = chunk.removeprefix("\n") if ended_by_return else chunk  # a \r\n that two chunks share
        ended_by_return = chunk.endswith("\r") if chunk else ended_by_return
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        first, *others = text.split("\n")
        parts.append(first)
        size = _bounded(name, size + len(first))
        for line in others:
            yield "".join(parts)
            parts, size = [line], len(line)
    if size:
        yield "".join(parts)


def _paragraphs(name: str, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Stretches of lines that are not blank, each with the number of its first line."""
    lines: list[str] = []
    size = first = 0
    for number, line in numbered:
        if line and not line.isspace():
            first = first if lines else number
            lines.append(line)
            size = _bounded(name, size + len(line) + 1)
        elif lines:
            yield first, "\n".join(lines)
            lines, size = [], 0
    if lines:
        yield first, "\n".join(lines)


def _bounded(name: str, n_chars: int) -> int:
    if n_chars > MAX_DOCUMENT_CHARS:
        raise DataError(
            f"{name} holds a line or paragraph of more than {MAX_DOCUMENT_CHARS} characters",
            "set data.documents=file, which keeps no whole document in memory",
        )
    return n_chars
