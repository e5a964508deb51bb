"""Prepared data: tokens of two splits, their tokenizer, and the identity a run stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gpuworkbench.data.corpora.sieve import Sifted
from gpuworkbench.data.meta import Meta, Part, open_tokens
from gpuworkbench.data.shards.token_array import TokenArray
from gpuworkbench.data.split import Split
from gpuworkbench.data.tokenization.tokenizer import Tokenizer, load_tokenizer

TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True)
class PreparedData:
    """What `prepare` returns. `sha256` covers both splits' tokens and the tokenizer: compared at resume."""

    directory: Path
    sha256: str
    tokenizer_name: str
    tokenizer_sha256: str
    vocab_size: int
    n_train_tokens: int
    n_val_tokens: int
    n_documents: int | None
    description: str
    warnings: tuple[str, ...]
    key: str  # of the configuration it was made for
    sifted: Sifted | None  # what became of the documents, where text was encoded
    _meta: Meta = field(repr=False, compare=False)

    @classmethod
    def from_meta(cls, directory: Path, meta: Meta) -> PreparedData:
        """The public view of a prepared directory."""
        return cls(
            directory=directory,
            sha256=meta.identity(),
            tokenizer_name=meta.tokenizer_name,
            tokenizer_sha256=meta.tokenizer_sha256,
            vocab_size=meta.vocab_size,
            n_train_tokens=meta.n_tokens("train"),
            n_val_tokens=meta.n_tokens("val"),
            n_documents=meta.n_documents,
            description=meta.description,
            warnings=meta.warnings,
            key=meta.key,
            sifted=meta.sifted,
            _meta=meta,
        )

    def tokens(self, split: Split) -> TokenArray:
        """A split's tokens, memory-mapped. DataError when a file changed since."""
        return open_tokens(self.directory, self._meta.parts(split))

    def parts(self, split: Split) -> tuple[Part, ...]:
        """The stretches of shards that a split consists of, in reading order."""
        return self._meta.parts(split)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the tokens were made with."""
        return load_tokenizer(self.directory / TOKENIZER_FOLDER)
