"""One split's tokens on their way into the cache: as many shards as the header's 32-bit count makes necessary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpuworkbench.data.meta import Part
from gpuworkbench.data.shards import ShardWriter, variant_for
from gpuworkbench.data.split import Split
from gpuworkbench.io import REAL_FILES, Files

MAX_SHARD_TOKENS = 2**30


class SplitWriter:
    """Appends tokens to `train.bin`, `train-1.bin`, ... of a directory. A context manager; raises OSError."""

    def __init__(
        self,
        directory: Path,
        split: Split,
        vocab_size: int,
        files: Files = REAL_FILES,
        *,
        max_shard_tokens: int = MAX_SHARD_TOKENS,
    ) -> None:
        self._directory = directory
        self._split = split
        self._variant = variant_for(vocab_size)
        self._files = files
        self._limit = max_shard_tokens
        self._parts: list[Part] = []
        self._shard: ShardWriter | None = None

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._shard is not None:
            self._shard.close()

    def append(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append ids (N,)."""
        while len(tokens):
            shard = self._shard or self._open()
            fitting = min(len(tokens), self._limit - shard.n_tokens)
            shard.append(tokens[:fitting])
            tokens = tokens[fitting:]
            if shard.n_tokens == self._limit:
                self._close_shard()

    def finish(self) -> tuple[Part, ...]:
        """Make the last shard durable; the parts written, none where no token came."""
        if self._shard is not None:
            self._close_shard()
        return tuple(self._parts)

    def _open(self) -> ShardWriter:
        number = len(self._parts)
        name = f"{self._split}-{number}.bin" if number else f"{self._split}.bin"
        self._shard = ShardWriter(self._directory / name, self._variant, self._files)
        return self._shard

    def _close_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            try:
                digest = shard.finish()
            except BaseException:
                shard.close()
                raise
            self._parts.append(whole_shard(shard.path.name, shard.path, shard.n_tokens, digest))


def whole_shard(stored_path: str, path: Path, n_tokens: int, sha256: str) -> Part:
    """All tokens of a shard as one part. Raises OSError."""
    size = path.stat().st_size
    return Part(path=stored_path, size_bytes=size, n_tokens=n_tokens, sha256=sha256, start=0, stop=n_tokens)
