"""The user's own text as a corpus: a UTF-8 file, a JSONL file, or a folder of both."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpuworkbench.data.documents import Document, chunked, file_chunks, fingerprint_of, looks_binary, not_utf8
from gpuworkbench.data.location import kind_of, open_regular, stat_path, unreadable
from gpuworkbench.errors import DataError

_MAX_LINE_BYTES = 256 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class _Record(msgspec.Struct):
    text: str


_RECORD_DECODER = msgspec.json.Decoder(_Record)


class _Entry(NamedTuple):
    path: Path
    name: str  # relative to the folder: the document's group
    size_bytes: int
    mtime_ns: int

    @property
    def is_jsonl(self) -> bool:
        return self.path.suffix.lower() in (".jsonl", ".ndjson")


@dataclass(frozen=True)
class FileCorpus:
    """One or several files; JSONL files give a document a line, all others are one document."""

    root: Path
    entries: tuple[_Entry, ...]
    warnings: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The path, and the number of files of a folder."""
        files = f" ({len(self.entries)} files)" if self.root != self.entries[0].path else ""
        return f"{self.root}{files}"

    @cached_property
    def fingerprint(self) -> str:
        """Paths, sizes and modification times: a file that was touched is read again."""
        parts = (f"{entry.name}\n{entry.size_bytes}\n{entry.mtime_ns}" for entry in self.entries)
        return fingerprint_of("files", self.root, *parts)

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return sum(entry.size_bytes for entry in self.entries)

    def count_groups(self) -> int:
        """Files, with every JSONL line counted."""
        return sum(_count_lines(entry.path) if entry.is_jsonl else 1 for entry in self.entries)

    def documents(self) -> Iterator[Document]:
        """Every file, or every line of a JSONL file, in sorted order."""
        for entry in self.entries:
            if entry.is_jsonl:
                yield from _jsonl_documents(entry)
            else:
                yield Document(entry.name, entry.size_bytes, file_chunks(entry.path))


def open_file(path: Path) -> FileCorpus:
    """A corpus of one text or JSONL file. Raises DataError for an empty file."""
    with open_regular(path) as stream:
        info = os.fstat(stream.fileno())
    if info.st_size == 0:
        raise DataError(f"{path} is empty", "data.source needs text")
    return FileCorpus(path, (_Entry(path, path.name, info.st_size, info.st_mtime_ns),))


def open_folder(folder: Path) -> FileCorpus:
    """A corpus of all text files under `folder`, sorted; hidden, binary, empty and special files are left out."""
    entries: list[_Entry] = []
    skipped: dict[str, int] = {}
    for path in _walk(folder):
        entry = _look_at(path, folder)
        if isinstance(entry, str):
            skipped[entry] = skipped.get(entry, 0) + 1
        else:
            entries.append(entry)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    if not entries:
        found = f" (left out: {left_out})" if left_out else ""
        raise DataError(f"folder {folder} holds no text files{found}", "data.source needs UTF-8 text, JSONL or shards")
    warnings = (f"{folder}: left out {left_out}",) if left_out else ()
    return FileCorpus(folder, tuple(entries), warnings)


def _walk(folder: Path) -> Iterator[Path]:
    """Paths of all visible entries that are not folders, in sorted order; linked folders are not entered."""

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from error

    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def _look_at(path: Path, folder: Path) -> _Entry | str:
    """The entry of a text file, or why it is left out. DataError for a file that may not be read."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return "broken link(s)"
    except OSError as error:
        if path.is_symlink():
            return "broken link(s)"
        raise unreadable(path, error) from error
    if not stat.S_ISREG(info.st_mode):
        return f"that are {kind_of(info.st_mode)}"
    if info.st_size == 0:
        return "empty file(s)"
    with open_regular(path) as stream:
        if looks_binary(stream.read(8 * 1024)) is not None:
            return "binary-looking file(s)"
    return _Entry(path, str(path.relative_to(folder)), info.st_size, info.st_mtime_ns)


def _count_lines(path: Path) -> int:
    with open_regular(path) as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b"")) + 1


def _jsonl_documents(entry: _Entry) -> Iterator[Document]:
    """The `text` of every line that is not blank. DataError names file and line number (from 1)."""
    consumed = 0
    with open_regular(entry.path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MAX_LINE_BYTES), b""), start=1):
            if line.strip():
                text = _text_of(entry.path, number, line, consumed)
                yield Document(f"{entry.name}:{number}", len(text.encode()), chunked(text))
            consumed += len(line)


def _text_of(path: Path, number: int, line: bytes, line_offset: int) -> str:
    if len(line) >= _MAX_LINE_BYTES:
        raise DataError(f"{path} line {number} is longer than {_MAX_LINE_BYTES} bytes")
    try:
        line.decode("utf-8")
        return _RECORD_DECODER.decode(line.removeprefix(_BOM) if number == 1 else line).text
    except UnicodeDecodeError as error:
        raise not_utf8(path, line_offset + error.start) from error
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        reason = str(error).removesuffix(" - at `$`")
        hint = 'each line must be a JSON object with a string "text"'
        raise DataError(f"{path} line {number}: {reason}", hint) from error


def open_text(path: Path) -> FileCorpus:
    """The corpus at a user's path: a file or a folder. DataError for anything else."""
    return open_folder(path) if stat.S_ISDIR(stat_path(path).st_mode) else open_file(path)
