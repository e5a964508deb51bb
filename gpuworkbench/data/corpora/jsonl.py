"""JSONL as documents: a record a line, all of one layout, read line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from gpuworkbench.data.corpora.compressed import READ_ERRORS, open_data
from gpuworkbench.data.corpora.documents import Document, not_utf8
from gpuworkbench.data.corpora.records import KNOWN_KEYS, Layout, LossOn, RecordError, document_of, layout_of
from gpuworkbench.data.location import unreadable
from gpuworkbench.errors import DataError

MAX_LINE_BYTES = 256 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 1024 * 1024
_NULL = b"null"

_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_Fields = dict[str, msgspec.Raw]


def count_lines(path: Path) -> int:
    """Line ends and one, blank lines too. Raises DataError."""
    try:
        with open_data(path) as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK_BYTES), b"")) + 1
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def jsonl_documents(path: Path, name: str, loss_on: LossOn) -> Iterator[Document]:
    """A document a line that is not blank, of group `name:line`. DataError names file and line number (from 1)."""
    layout: Layout | None = None
    decoder: msgspec.json.Decoder[Any] | None = None
    first = 0
    for number, line in _lines(path):
        try:
            fields = _fields(line)
            here = layout_of(fields)
            if layout is None or decoder is None:
                layout, first = _required(here, fields), number
                decoder = msgspec.json.Decoder(layout.type)
            elif here is not None and here is not layout:
                raise RecordError(f"is {here.description}, line {first} is {layout.description}: one kind a file")
            yield document_of(f"{name}:{number}", decoder.decode(line), layout, loss_on)
        except RecordError as error:
            raise DataError(f"{path} line {number}: {error}", _hint(layout)) from error
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise DataError(f"{path} line {number}: {str(error).removesuffix(' - at `$`')}", _hint(layout)) from error


def _fields(line: bytes) -> _Fields:
    """The fields of an object that are not null. Raises MsgspecError, RecursionError."""
    try:
        fields = _KEYS.decode(line)
    except msgspec.DecodeError:
        msgspec.json.decode(line)  # names more faults than a decoder that skips the values
        raise
    if _NULL in line:
        return {key: raw for key, raw in fields.items() if bytes(raw) != _NULL}
    return fields


def _check_utf8(path: Path, line: bytes, offset: int) -> None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start) from error


def _required(layout: Layout | None, fields: _Fields) -> Layout:
    if layout is None:
        if not fields:
            raise RecordError(f"Object has none of the fields {KNOWN_KEYS}")
        found = ", ".join(repr(key) for key in list(fields)[:8])
        raise RecordError(f"Object has none of the fields {KNOWN_KEYS}, but {found}")
    return layout


def _hint(layout: Layout | None) -> str:
    keys = " and ".join(f'"{key}"' for key in layout.keys) if layout is not None else KNOWN_KEYS
    return f"each line must be a JSON object with {keys}"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the lines that are not blank, all of them UTF-8. Raises DataError."""
    offset = 0
    try:
        with open_data(path) as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{path} line {number} is longer than {MAX_LINE_BYTES} bytes", "split the record")
                if not line.isascii():
                    _check_utf8(path, line, offset)
                content = line.removeprefix(_BOM) if offset == 0 else line
                if content.strip():
                    yield number, content
                offset += len(line)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
