"""The user's own data as a corpus: a UTF-8 text, JSONL or parquet file, or a folder of all three."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from gpuworkbench.data.corpora import parquet
from gpuworkbench.data.corpora.compressed import decompressed_bytes, estimated_bytes, name_within, read_head
from gpuworkbench.data.corpora.cutting import Cut, count_documents, cut_documents
from gpuworkbench.data.corpora.documents import Document, file_chunks, fingerprint_of, looks_binary
from gpuworkbench.data.corpora.jsonl import count_lines, jsonl_documents
from gpuworkbench.data.corpora.records import LossOn
from gpuworkbench.data.location import kind_of, open_regular, stat_path, unreadable
from gpuworkbench.errors import DataError

_PROBE_BYTES = 8 * 1024
Kind = Literal["text", "jsonl", "parquet"]


class _Entry(NamedTuple):
    path: Path
    name: str  # relative to the folder: the document's group
    size_bytes: int
    mtime_ns: int
    ctime_ns: int  # cannot be set back: an edit that keeps size and modification time shows here

    @classmethod
    def of(cls, path: Path, name: str, info: os.stat_result) -> _Entry:
        return cls(path, name, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    @property
    def kind(self) -> Kind:
        if self.path.suffix.lower() == parquet.SUFFIX:
            return "parquet"
        return "jsonl" if name_within(self.path).endswith((".jsonl", ".ndjson")) else "text"


@dataclass(frozen=True)
class FileCorpus:
    """One or several files; JSONL and parquet files give a document a record, all others are cut as `cut` says."""

    root: Path
    entries: tuple[_Entry, ...]
    warnings: tuple[str, ...] = ()
    cut: Cut = "file"  # what a document is in a file of plain text
    loss_on: LossOn = "auto"

    @property
    def description(self) -> str:
        """The path, and the number of files of a folder."""
        files = f" ({len(self.entries)} files)" if self.root != self.entries[0].path else ""
        return f"{self.root}{files}"

    @cached_property
    def fingerprint(self) -> str:
        """Paths, sizes and times: a file that was touched is read again."""
        parts = (f"{e.name}\n{e.size_bytes}\n{e.mtime_ns}\n{e.ctime_ns}" for e in self.entries)
        return fingerprint_of("files", self.root, self.loss_on, *parts)

    @cached_property
    def n_bytes(self) -> int:
        """About the size of the text."""
        return sum(
            parquet.text_bytes(entry.path) if entry.kind == "parquet" else estimated_bytes(entry.path, entry.size_bytes)
            for entry in self.entries
        )

    def count_groups(self) -> int:
        """Every line of JSONL and row of parquet, and about as many of a text's documents as it is cut into."""
        count: dict[Kind, Callable[[Path], int]] = {
            "text": lambda path: count_documents(path, self.cut),
            "jsonl": count_lines,
            "parquet": parquet.count_rows,
        }
        return sum(count[entry.kind](entry.path) for entry in self.entries)

    def documents(self) -> Iterator[Document]:
        """Every text file, every record of a JSONL or parquet file, files in sorted order."""
        for entry in self.entries:
            match entry.kind:
                case "jsonl":
                    yield from jsonl_documents(entry.path, entry.name, self.loss_on)
                case "parquet":
                    yield from parquet.parquet_documents(entry.path, entry.name, self.loss_on)
                case _:
                    yield from self._text_documents(entry)

    def _text_documents(self, entry: _Entry) -> Iterator[Document]:
        if self.loss_on == "answers":
            raise DataError(
                f"{entry.path} is plain text without answers, and data.loss_on is answers",
                "set data.loss_on=auto, or leave the file out",
            )
        n_bytes = decompressed_bytes(entry.path, entry.size_bytes)
        return cut_documents(entry.name, n_bytes, file_chunks(entry.path), self.cut)


def open_file(path: Path) -> FileCorpus:
    """A corpus of one text, JSONL or parquet file. Raises DataError for an empty file."""
    with open_regular(path) as stream:
        info = os.fstat(stream.fileno())
    if info.st_size == 0:
        raise DataError(f"{path} is empty", "data.source needs text")
    return FileCorpus(path, (_Entry.of(path, path.name, info),))


def open_folder(folder: Path) -> FileCorpus:
    """A corpus of all text, JSONL and parquet files under `folder`, sorted.

    Hidden, binary, empty and special files are left out.
    """
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
        raise DataError(
            f"folder {folder} holds no text files{found}", "data.source needs text, JSONL, parquet or shards"
        )
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
    entry = _Entry.of(path, str(path.relative_to(folder)), info)
    if entry.kind == "text" and looks_binary(read_head(path, _PROBE_BYTES)) is not None:
        return "binary-looking file(s)"
    return entry


def open_text(path: Path, cut: Cut = "file", loss_on: LossOn = "auto") -> FileCorpus:
    """The corpus at a user's path: a file or a folder. DataError for anything else."""
    corpus = open_folder(path) if stat.S_ISDIR(stat_path(path).st_mode) else open_file(path)
    return replace(corpus, cut=cut, loss_on=loss_on)
