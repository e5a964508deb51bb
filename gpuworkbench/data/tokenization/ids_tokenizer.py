"""`ids`: the tokenizer of token shards whose text tokenizer is not here. Its text is the numbers themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes

NAME = "ids"
FILE_NAME = "tokenizer.json"
NO_END_OF_TEXT = -1  # for counting documents: it is not known which id ends one


class IdsTokenizer:
    """Ids below `vocab_size`, written as decimal numbers: "17 4 912 "."""

    def __init__(self, vocab_size: int) -> None:
        self.name = NAME
        self.vocab_size = vocab_size
        self.eot_id = 0  # what a sample without a prompt begins with

    @cached_property
    def _content(self) -> bytes:
        stored = {
            "format": "gpuworkbench-tokenizer-1",
            "kind": NAME,
            "name": self.name,
            "vocab_size": self.vocab_size,
            "eot_id": self.eot_id,
        }
        return msgspec.json.encode(stored) + b"\n"

    @cached_property
    def sha256(self) -> str:
        """Identity: the hash of the saved file."""
        return hashlib.sha256(self._content).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The numbers in a text. DataError for anything that is not an id."""
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 12 and int(word) < self.vocab_size):
                raise DataError(
                    f"{word[:40]!r} is not a token id below {self.vocab_size}",
                    "data.tokenizer = ids has no text: a prompt (sample.prompt) is ids too, such as '17 4 12'",
                )
        return [int(word) for word in words]

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """`encode` of each text."""
        return [np.array(self.encode(text), dtype=np.uint32) for text in texts]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Each id and a space."""
        return "".join(f"{int(each)} " for each in ids)

    def save(self, directory: Path, files: Files = REAL_FILES) -> None:
        """Write `tokenizer.json` into an existing directory. Raises OSError."""
        atomic_write_bytes(directory / FILE_NAME, self._content, files)
