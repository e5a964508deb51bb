"""The files behind tiktoken's names: read from a cache, else downloaded once, with limits, progress and a hash check.

tiktoken keeps them in TIKTOKEN_CACHE_DIR, else in the system's temporary folder, and downloads with no time limit. Here
they lie in this program's cache where no variable says otherwise, so they outlive a reboot.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gpuworkbench.data.location import cache_root
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes
from gpuworkbench.io.atomic import make_directories
from gpuworkbench.io.reading import read_regular_file
from gpuworkbench.units import format_bytes

OnProgress = Callable[[str, float | None], None]

CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # tiktoken's own, in its order
CONNECT_LIMIT_S = 5.0
READ_LIMIT_S = 15.0
MAX_FILE_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024


class VocabularyError(Exception):
    """Why a file cannot be had, in a few words."""


def cache_folder() -> Path | None:
    """Where files are kept: as the variables say (empty: nowhere), else in this program's cache."""
    for name in CACHE_VARIABLES:
        if name in os.environ:
            return Path(os.environ[name]).expanduser() if os.environ[name] else None
    return cache_root() / "tiktoken"


def file_name(address: str) -> str:
    """The name that tiktoken gives a file in its cache."""
    return hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()


class VocabularyFiles:
    """Reads files by address."""

    def __init__(self, on_progress: OnProgress, files: Files = REAL_FILES) -> None:
        self.asked_s: float | None = None  # since when (monotonic) a server has not answered
        self._report = on_progress
        self._files = files

    def read(self, blobpath: str, expected_hash: str | None = None) -> bytes:
        """The content of the file at an address, of the right sha256. Raises VocabularyError, requests' errors."""
        address = blobpath  # the argument's name is tiktoken's
        folder = cache_folder()
        for place in self._places(folder):
            if (content := _read_cached(place / file_name(address), expected_hash)) is not None:
                return content
        content = self._download(address)
        if expected_hash is not None and hashlib.sha256(content).hexdigest() != expected_hash:
            raise VocabularyError(f"what arrived from {address} has another hash than it should")
        if folder is not None:
            self._keep(folder, file_name(address), content)
        return content

    def _places(self, folder: Path | None) -> list[Path]:
        """The cache, and tiktoken's default one where no variable names another."""
        places = [folder] if folder is not None else []
        if not any(name in os.environ for name in CACHE_VARIABLES):
            places.append(Path(tempfile.gettempdir()) / "data-gym-cache")
        return places

    def _download(self, address: str) -> bytes:
        import requests

        if not address.startswith(("https://", "http://")):
            raise VocabularyError(f"{address} is no web address")
        self.asked_s = time.monotonic()
        with requests.get(address, timeout=(CONNECT_LIMIT_S, READ_LIMIT_S), stream=True) as response:
            self.asked_s = None
            if not response.ok:
                raise VocabularyError(f"HTTP {response.status_code} for {address}")
            total = int(response.headers.get("Content-Length") or 0)
            content = bytearray()
            for chunk in response.iter_content(_CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_FILE_BYTES:
                    raise VocabularyError(f"{address} is larger than {format_bytes(MAX_FILE_BYTES)}")
                name = address.rsplit("/", 1)[-1]
                self._report(f"downloading {name}", min(len(content) / total, 1.0) if total else None)
        return bytes(content)

    def _keep(self, folder: Path, name: str, content: bytes) -> None:
        """Keep it for the next time; a cache that cannot be written costs another download, no more."""
        try:
            make_directories(folder, self._files)
            atomic_write_bytes(folder / name, content, self._files)
        except OSError as error:
            self._report(f"the vocabulary is not kept in {folder}: {error.strerror or error}", None)


def _read_cached(path: Path, expected_hash: str | None) -> bytes | None:
    """A cached file, None where it is absent, unreadable or not what it should be."""
    try:
        content = read_regular_file(path, MAX_FILE_BYTES, follow_symlinks=True)
    except (OSError, ValueError):
        return None
    is_right = expected_hash is None or hashlib.sha256(content).hexdigest() == expected_hash
    return content if is_right else None
