"""Tokenizers: text to ids and back, and the small JSON file that a run keeps of its own.

Two kinds here: `byte`, and byte-level BPE (trained here, or one of tiktoken's), which always encodes through tiktoken;
a third in library_tokenizer.py. A saved tokenizer loads without training and without a network.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from gpuworkbench.data.corpora.documents import chunked
from gpuworkbench.data.location import open_regular
from gpuworkbench.data.tokenization.ids_tokenizer import IdsTokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes

EOT_TEXT = "<|endoftext|>"
FILE_NAME = "tokenizer.json"
FORMAT: Final = "gpuworkbench-tokenizer-1"
# GPT-2's split into words, numbers, punctuation and spaces (Radford et al. 2019), with possessive quantifiers.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_MAX_FILE_BYTES = 160 * 1024 * 1024
_REPLACEMENT = "\ufffd".encode()

Ids = npt.NDArray[np.uint32]


class Tokenizer(Protocol):
    """Text to ids and back. Special tokens in a text are ordinary text."""

    name: str
    vocab_size: int
    eot_id: int  # stands before every document

    @property
    def sha256(self) -> str:
        """Identity: the hash of the saved file."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text; lone surrogates become U+FFFD."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of several texts, each uint32 (N,). Called from several threads at once."""
        ...

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of ids. Never raises: partial UTF-8 and ids without a token become U+FFFD."""
        ...

    def save(self, directory: Path, files: Files = REAL_FILES) -> None:
        """Write `tokenizer.json` into an existing directory. Raises OSError."""
        ...


class TokenizerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is stored. For BPE, `tokens` holds each id's bytes in base64, empty for an id without any."""

    format: Literal["gpuworkbench-tokenizer-1"] = FORMAT
    kind: Literal["byte", "bpe", "ids"]
    name: str
    vocab_size: int
    eot_id: int
    pattern: str = ""
    tokens: list[str] = []


class Saved:
    """Saving and identity, the same for every kind, and the decoding of a table of bytes."""

    name: str
    vocab_size: int
    eot_id: int
    _bytes_of_id: list[bytes]

    def _file(self) -> msgspec.Struct:
        raise NotImplementedError

    @cached_property
    def _content(self) -> bytes:
        return msgspec.json.encode(self._file()) + b"\n"

    @cached_property
    def sha256(self) -> str:
        """Identity: the hash of the saved file."""
        return hashlib.sha256(self._content).hexdigest()

    def save(self, directory: Path, files: Files = REAL_FILES) -> None:
        """Write `tokenizer.json` into an existing directory. Raises OSError."""
        atomic_write_bytes(directory / FILE_NAME, self._content, files)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of ids; partial UTF-8 and ids without a token become U+FFFD."""
        table = self._bytes_of_id
        pieces = (table[i] if 0 <= i < len(table) else _REPLACEMENT for i in (int(each) for each in ids))
        return b"".join(pieces).decode("utf-8", "replace")


class ByteTokenizer(Saved):
    """The 256 bytes of UTF-8 and an end-of-text token."""

    def __init__(self) -> None:
        self.name = "byte"
        self.vocab_size = 257
        self.eot_id = 256
        self._bytes_of_id = [*(bytes([value]) for value in range(256)), EOT_TEXT.encode()]

    def encode(self, text: str) -> list[int]:
        """One id a byte."""
        return list(encodable(text).encode())

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of several texts, each uint32 (N,)."""
        return [np.frombuffer(encodable(text).encode(), dtype=np.uint8).astype(np.uint32) for text in texts]

    def _file(self) -> TokenizerFile:
        return TokenizerFile(kind="byte", name=self.name, vocab_size=self.vocab_size, eot_id=self.eot_id)


class BpeTokenizer(Saved):
    """Byte-level byte-pair encoding (Sennrich et al. 2016) through tiktoken."""

    def __init__(
        self, name: str, tokens: Sequence[bytes], *, eot_id: int, vocab_size: int, pattern: str = GPT2_PATTERN
    ) -> None:
        """`tokens[i]` are the bytes of id i, in merge order; empty where an id has none. Raises ValueError."""
        import tiktoken  # heavy: loaded when a BPE is really used

        ranks = {token: rank for rank, token in enumerate(tokens) if token}
        if len(ranks) != sum(1 for token in tokens if token):
            raise ValueError("two ids have the same bytes")
        if any(bytes([value]) not in ranks for value in range(256)):
            raise ValueError("not every single byte has an id")
        if not 0 <= eot_id < vocab_size or len(tokens) > vocab_size or (eot_id < len(tokens) and tokens[eot_id]):
            raise ValueError("the end-of-text id does not fit the vocabulary")
        self.name = name
        self.vocab_size = vocab_size
        self.eot_id = eot_id
        self.pattern = pattern  # splits a text into the pieces that merges stay within
        self.tokens = list(tokens)
        self._bytes_of_id = [token or _REPLACEMENT for token in tokens]
        self._bytes_of_id += [_REPLACEMENT] * (vocab_size - len(tokens))
        self._bytes_of_id[eot_id] = EOT_TEXT.encode()
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={EOT_TEXT: eot_id}
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are ordinary text."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of several texts, each uint32 (N,), in this thread; others run meanwhile (tiktoken releases the GIL)."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Ids:
        # In pieces: the regular expression engine gives up on a run of a million spaces.
        pieces = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in chunked(encodable(text))]
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, dtype=np.uint32)])

    def _file(self) -> TokenizerFile:
        encoded = [base64.b64encode(token).decode() for token in self.tokens]
        return TokenizerFile(
            kind="bpe",
            name=self.name,
            vocab_size=self.vocab_size,
            eot_id=self.eot_id,
            pattern=self.pattern,
            tokens=encoded,
        )


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """The id after which nothing belongs to a text; None where it is not known (`ids`)."""
    return None if isinstance(tokenizer, IdsTokenizer) else tokenizer.eot_id


def encodable(text: str) -> str:
    """The text itself, or, where it holds surrogates, pairs joined and lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `directory`. DataError for anything that is not one."""
    path = directory / FILE_NAME
    with open_regular(path) as stream:
        content = stream.read(_MAX_FILE_BYTES + 1)
    try:
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"larger than {_MAX_FILE_BYTES} bytes")
        return restore(content)
    except (msgspec.MsgspecError, ValueError, binascii.Error, OverflowError) as error:
        raise DataError(f"{path} is not a saved tokenizer: {error}") from error


class _Kind(msgspec.Struct, frozen=True):
    kind: Any = None


def restore(content: bytes) -> Tokenizer:
    """The tokenizer of a saved file's content. Raises ValueError, OverflowError, msgspec.MsgspecError."""
    if msgspec.json.decode(content, type=_Kind).kind == "library":
        from gpuworkbench.data.tokenization.library_tokenizer import restore_library

        return restore_library(content)
    stored = msgspec.json.decode(content, type=TokenizerFile)
    if stored.kind == "byte":
        return ByteTokenizer()
    if not 0 < stored.vocab_size <= 2**24:
        raise ValueError(f"vocab_size is {stored.vocab_size}")
    if stored.kind == "ids":
        return IdsTokenizer(stored.vocab_size)
    tokens = [base64.b64decode(token, validate=True) for token in stored.tokens]
    return BpeTokenizer(stored.name, tokens, eot_id=stored.eot_id, vocab_size=stored.vocab_size, pattern=stored.pattern)
