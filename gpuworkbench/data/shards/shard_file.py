"""Token shards: a header of 256 little-endian int32 (magic, version, count), then the tokens.

Two variants are in use: magic 20240520 version 1 with uint16 tokens (GPT-2 sized vocabularies) and magic 20240801
version 7 with uint32 tokens (larger ones). Shards are memory-mapped where they lie, never copied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpuworkbench.data.location import open_regular
from gpuworkbench.data.tokenization.ids_tokenizer import NAME as IDS
from gpuworkbench.data.tokenization.ids_tokenizer import NO_END_OF_TEXT
from gpuworkbench.data.tokenization.tokenizer import Tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files
from gpuworkbench.io.files import write_all

HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4
_SCAN_TOKENS = 4 * 1024 * 1024
_WITHOUT_HEADER = (
    "if it holds bare tokens, as nanoGPT's .bin files do, say how many its vocabulary has: "
    "--set data.bin_vocab_size=50257 --set data.tokenizer=gpt2 (or ids, where the tokenizer is not here)"
)


class Variant(NamedTuple):
    """One of the two layouts."""

    magic: int
    version: int
    dtype: str


UINT16 = Variant(20240520, 1, "<u2")
UINT32 = Variant(20240801, 7, "<u4")
VARIANTS = (UINT16, UINT32)


def variant_for(vocab_size: int) -> Variant:
    """The smallest layout that holds every id below `vocab_size`."""
    return UINT16 if vocab_size <= 2**16 else UINT32


def raw_dtype_for(vocab_size: int) -> str:
    """The type of tokens in a file without a header: uint16 as nanoGPT writes it, uint32 for larger vocabularies."""
    return variant_for(vocab_size).dtype


def map_shard(path: Path, raw_dtype: str = "") -> npt.NDArray[np.generic]:
    """The tokens of a shard (N,), memory-mapped read-only, after its header and size were checked.

    A file without a header is read as tokens of `raw_dtype` where one is given. Raises DataError.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(HEADER_BYTES)
        if raw_dtype and not _has_magic(head):
            dtype, offset, count = raw_dtype, 0, _raw_count(path, size, np.dtype(raw_dtype).itemsize)
        else:
            variant, count = _parse_header(path, head, size)
            dtype, offset = variant.dtype, HEADER_BYTES
        try:
            return np.memmap(stream, dtype=dtype, mode="r", offset=offset, shape=(count,))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot map token shard {path}: {error}") from error


def _has_magic(head: bytes) -> bool:
    """Whether the first number is one of the magics, in either byte order."""
    return any(int.from_bytes(head[:4], order) in (v.magic for v in VARIANTS) for order in ("little", "big"))


def _raw_count(path: Path, size: int, itemsize: int) -> int:
    if size == 0:
        raise DataError(f"token shard {path} is empty")
    if size % itemsize:
        raise DataError(f"{path} has {size} bytes, tokens without a header take {itemsize} bytes each")
    return size // itemsize


def _parse_header(path: Path, head: bytes, size: int) -> tuple[Variant, int]:
    if size == 0:
        raise DataError(f"token shard {path} is empty")
    if len(head) < HEADER_BYTES:
        raise DataError(
            f"token shard {path} has {size} bytes, its header alone needs {HEADER_BYTES}",
            "" if _has_magic(head) else _WITHOUT_HEADER,
        )
    if not _has_magic(head):
        raise _no_header(path, head)
    magic, version, count = (int(value) for value in np.frombuffer(head, dtype="<i4", count=3))
    variant = next((each for each in VARIANTS if each.magic == magic), None)
    if variant is None:
        raise DataError(
            f"token shard {path} is big-endian (its magic reads {magic}, byte-swapped {_swapped(magic)}); "
            "header and tokens must be little-endian",
            "write it again with numpy types '<i4' and '<u2' or '<u4'",
        )
    if version != variant.version:
        raise DataError(f"token shard {path} has version {version}, magic {magic} needs version {variant.version}")
    if count < 1:
        raise DataError(f"token shard {path} says it holds {count} tokens, it must hold at least 1")
    expected = HEADER_BYTES + count * np.dtype(variant.dtype).itemsize
    if size != expected:
        raise DataError(f"token shard {path} has {size} bytes, its header's {count} tokens need {expected}")
    return variant, count


def _no_header(path: Path, head: bytes) -> DataError:
    known = " or ".join(str(each.magic) for each in VARIANTS)
    magic = int.from_bytes(head[:4], "little", signed=True)
    return DataError(
        f"token shard {path} has magic {magic}, not {known}: it has no header",
        _WITHOUT_HEADER,
    )


def _swapped(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little", signed=True), "big", signed=True)


class TokenCheck(NamedTuple):
    """What every token of a shard is checked against."""

    vocab_size: int
    reason: str  # whose number it is, for the message
    eot_id: int
    raw_dtype: str = ""

    @classmethod
    def of(cls, tokenizer: Tokenizer, bin_vocab_size: int | None, raw_dtype: str) -> TokenCheck:
        """The smaller of the tokenizer's vocabulary and the one a person stated."""
        size = tokenizer.vocab_size
        eot_id = NO_END_OF_TEXT if tokenizer.name == IDS else tokenizer.eot_id
        if bin_vocab_size is not None and (bin_vocab_size < size or tokenizer.name == IDS):
            return cls(bin_vocab_size, f"the vocabulary was said to have {bin_vocab_size} tokens", eot_id, raw_dtype)
        return cls(size, f"the tokenizer has {size} tokens", eot_id, raw_dtype)


class ShardScan(NamedTuple):
    """What one pass over a shard's tokens found."""

    n_tokens: int
    sha256: str  # of the token bytes, without the header
    n_documents: int  # end-of-text tokens


def scan_shard(path: Path, check: TokenCheck, on_tokens: Callable[[int], None] | None = None) -> ShardScan:
    """Check every token, hash them, count documents. DataError names token, place and size."""
    tokens = map_shard(path, check.raw_dtype)
    digest, n_documents = hashlib.sha256(), 0
    for start in range(0, len(tokens), _SCAN_TOKENS):
        block = np.asarray(tokens[start : start + _SCAN_TOKENS])
        if int(block.max()) >= check.vocab_size:
            place = start + int(np.argmax(block >= check.vocab_size))
            raise DataError(
                f"token shard {path} holds token {int(tokens[place])} at position {place}, {check.reason}",
                "set data.tokenizer (or data.bin_vocab_size) to what the shards were made with",
            )
        digest.update(block.view(np.uint8).data)
        n_documents += int(np.count_nonzero(block == check.eot_id))
        if on_tokens is not None:
            on_tokens(len(block))
    return ShardScan(len(tokens), digest.hexdigest(), n_documents)


class ShardWriter:
    """Writes one shard through the file layer. The header, with the count, is written last.

    With `n_tokens`, goes on with an unfinished shard after that many; `digest` is then their sha256, and what lies
    beyond is cut off. Use as a context manager; `finish()` makes the file durable. Raises OSError.
    """

    def __init__(
        self,
        path: Path,
        variant: Variant,
        files: Files = REAL_FILES,
        *,
        n_tokens: int = 0,
        digest: hashlib._Hash | None = None,
    ) -> None:
        self.path = path
        self.n_tokens = n_tokens
        self._variant = variant
        self._files = files
        self._digest = digest or hashlib.sha256()
        self._fd = files.open_update(path) if n_tokens else files.open_write(path)
        try:
            if n_tokens:
                end = HEADER_BYTES + n_tokens * np.dtype(variant.dtype).itemsize
                files.truncate(self._fd, end)
                os.lseek(self._fd, end, os.SEEK_SET)
            else:
                write_all(files, self._fd, bytes(HEADER_BYTES))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def append(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append tokens (N,); ids must be below the vocabulary size that chose the variant."""
        data = np.ascontiguousarray(tokens, dtype=self._variant.dtype).view(np.uint8).data
        if not data:
            return
        self._digest.update(data)
        write_all(self._files, self._fd, data)
        self.n_tokens += len(tokens)

    def save(self) -> str:
        """fsync what was appended; returns its sha256. The file is not a valid shard yet."""
        self._files.fsync(self._fd)
        return self._digest.hexdigest()

    def finish(self) -> str:
        """Write the header, fsync, close; returns the sha256 of the token bytes."""
        header = np.zeros(HEADER_INTS, dtype="<i4")
        header[:3] = (self._variant.magic, self._variant.version, self.n_tokens)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._files, self._fd, header.tobytes())
        self._files.fsync(self._fd)
        fd, self._fd = self._fd, -1
        self._files.close(fd)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close without finishing; the file is then not a valid shard."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
