"""The embedded corpus: the running Python's standard library, found at run time. Nothing is downloaded.

Three kinds of documents: the language reference's topics (`pydoc_data`), one guide a module (its docstrings as
prose), and the sources of the short public modules. Long sources stay out, so that 40 % of the text is prose even
before the comments and docstrings inside sources are counted.
"""

from __future__ import annotations

import importlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from gpuworkbench.data.corpora.documents import Document, chunked, fingerprint_of
from gpuworkbench.data.corpora.prose import guide, tidy
from gpuworkbench.errors import DataError

# Not the library itself, its tests, generated tables, or code nobody reads for pleasure.
_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "lib-dynload", "test", "tests", "idlelib", "lib2to3"}
    | {"ensurepip", "turtledemo", "encodings", "pydoc_data"}
)
MAX_SOURCE_BYTES = 24 * 1024  # longer sources give only their guide
_MAX_MODULE_BYTES = 256 * 1024


class _Module(NamedTuple):
    name: str  # dotted
    path: Path
    size_bytes: int


@dataclass(frozen=True)
class StdlibCorpus:
    """Topics, guides and sources of the standard library below `root`."""

    root: Path
    modules: tuple[_Module, ...]

    @property
    def description(self) -> str:
        """Which Python's library it is."""
        return f"Python {platform.python_version()} standard library ({len(self.modules)} modules)"

    @cached_property
    def fingerprint(self) -> str:
        """Python's version and the list of files with their sizes."""
        listing = (f"{module.name} {module.size_bytes}" for module in self.modules)
        return fingerprint_of("stdlib", platform.python_implementation(), platform.python_version(), *listing)

    @property
    def n_bytes(self) -> int:
        """An estimate: the sources that are kept and, beside them, as much prose."""
        return 2 * sum(module.size_bytes for module in self.modules if module.size_bytes <= MAX_SOURCE_BYTES)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line where this Python comes without the topics."""
        return () if _topics() else ("this Python has no pydoc_data topics; the corpus is smaller without them",)

    def count_groups(self) -> int:
        """Topics and modules."""
        return len(self.modules) + len(_topics())

    def documents(self) -> Iterator[Document]:
        """Topics by name, then each module's guide and source."""
        yield from self._documents

    @cached_property
    def _documents(self) -> tuple[Document, ...]:
        """All of them, a few megabytes: a BPE reads them twice, and parsing costs a second."""
        return tuple(self._read_documents())

    def _read_documents(self) -> Iterator[Document]:
        for name, text in sorted(_topics().items()):
            yield _document(f"topic:{name}", tidy(text) + "\n")
        for module in self.modules:
            source = _read(module.path)
            yield _document(f"module:{module.name}", guide(module.name, source))
            if module.size_bytes <= MAX_SOURCE_BYTES:
                yield _document(f"module:{module.name}", source)


def open_stdlib(root: Path | None = None) -> StdlibCorpus:
    """The running Python's library. DataError where it has no readable sources (a zipped or stripped Python)."""
    root = root or Path(sysconfig.get_path("stdlib"))
    modules = tuple(sorted(_find_modules(root)))
    if not modules:
        raise DataError(f"no standard library sources at {root}", "set data.source to a text file or folder")
    return StdlibCorpus(root, modules)


def _find_modules(root: Path) -> Iterator[_Module]:
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name.isidentifier() and _is_public(name))
        package = Path(parent).relative_to(root).parts
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix != ".py" or (stem[0] == "_" and stem != "__init__") or (stem == "__init__" and not package):
                continue
            path = Path(parent, name)
            size = path.stat().st_size
            if 0 < size <= _MAX_MODULE_BYTES:
                yield _Module(".".join((*package, *(() if stem == "__init__" else (stem,)))), path, size)


def _is_public(folder: str) -> bool:
    return not folder.startswith("_") and folder not in _EXCLUDED


def _topics() -> dict[str, str]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return {}
    return topics


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _document(group: str, text: str) -> Document:
    return Document(group, len(text.encode()), tuple(chunked(text)))
