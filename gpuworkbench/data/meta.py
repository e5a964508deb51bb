"""What is kept beside prepared tokens: which files hold which split, their hashes, and how they were made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from gpuworkbench.data.corpora.sieve import Sifted
from gpuworkbench.data.shards.mask import map_mask
from gpuworkbench.data.shards.shard_file import map_shard
from gpuworkbench.data.shards.token_array import TokenArray
from gpuworkbench.data.split import SPLITS, Split
from gpuworkbench.errors import DataError

FORMAT = 3  # raised whenever the same configuration would give other tokens than before
FILE_NAME = "meta.json"


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stretch of one shard's tokens that belongs to a split."""

    path: str  # absolute for shards used in place, else relative to the prepared directory
    size_bytes: int
    n_tokens: int  # in the whole shard
    sha256: str  # of the whole shard's token bytes
    start: int
    stop: int
    mask: str = ""  # the whole shard's answer mask, placed as `path` is; empty: every token is scored
    mask_sha256: str = ""
    raw_dtype: str = ""  # of a shard that has no header


class Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """meta.json of a prepared directory."""

    format: int
    description: str
    tokenizer_name: str
    tokenizer_sha256: str
    vocab_size: int
    n_documents: int | None
    warnings: tuple[str, ...]
    train: tuple[Part, ...]
    val: tuple[Part, ...]
    key: str = ""  # of what was asked for: source, tokenizer, split and cleaning
    sifted: Sifted | None = None  # the drop report, where text was encoded
    checksum: str = ""  # of all the other fields

    def parts(self, split: Split) -> tuple[Part, ...]:
        """The split's parts in reading order."""
        return self.train if split == "train" else self.val

    def n_tokens(self, split: Split) -> int:
        """Tokens of a split."""
        return sum(part.stop - part.start for part in self.parts(split))

    def identity(self) -> str:
        """Hash of the tokens of both splits and of the tokenizer, wherever they lie."""
        digest = hashlib.sha256(self.tokenizer_sha256.encode())
        for split in SPLITS:
            for part in self.parts(split):
                digest.update(f"\n{split} {part.sha256} {part.start} {part.stop}".encode())
                if part.mask:
                    digest.update(f" {part.mask_sha256}".encode())
        return digest.hexdigest()

    def sealed(self) -> Meta:
        """The same with its checksum."""
        blank = msgspec.structs.replace(self, checksum="")
        return msgspec.structs.replace(blank, checksum=hashlib.sha256(msgspec.json.encode(blank)).hexdigest())


def open_tokens(directory: Path, parts: tuple[Part, ...]) -> TokenArray:
    """The parts as one memory-mapped array. DataError when a shard changed since it was prepared."""
    mapped, masks = [], []
    for part in parts:
        path = directory / part.path
        tokens = map_shard(path, part.raw_dtype)
        if len(tokens) != part.n_tokens:
            raise DataError(
                f"token shard {path} has {len(tokens)} tokens, {part.n_tokens} when it was prepared", "start again"
            )
        mapped.append(tokens[part.start : part.stop])
        mask = map_mask(directory / part.mask, part.n_tokens) if part.mask else None
        masks.append(None if mask is None else mask[part.start : part.stop])
    return TokenArray(mapped, masks)
