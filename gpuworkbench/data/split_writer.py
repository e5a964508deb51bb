"""One split's tokens on their way into the cache: as many shards as the header's 32-bit count makes necessary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpuworkbench.data.mask import MaskWriter, mask_of
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
        self._mask: MaskWriter | None = None

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for writer in (self._shard, self._mask):
            if writer is not None:
                writer.close()

    def append(self, tokens: npt.NDArray[np.integer], scored: npt.NDArray[np.bool_] | None = None) -> None:
        """Append ids (N,) and which of them are scored (N,), None for all."""
        scored = None if scored is None or scored.all() else scored
        while len(tokens):
            shard = self._shard or self._open()
            fitting = min(len(tokens), self._limit - shard.n_tokens)
            self._append_mask(shard, fitting, None if scored is None else scored[:fitting])
            shard.append(tokens[:fitting])
            tokens, scored = tokens[fitting:], None if scored is None else scored[fitting:]
            if shard.n_tokens == self._limit:
                self._close_shard()

    def _append_mask(self, shard: ShardWriter, count: int, scored: npt.NDArray[np.bool_] | None) -> None:
        """A shard gets a mask with its first token that is not scored."""
        if self._mask is None and scored is not None and not scored.all():
            self._mask = MaskWriter(mask_of(shard.path), shard.n_tokens, self._files)
        if self._mask is not None:
            self._mask.append(np.ones(count, dtype=np.bool_) if scored is None else scored)

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
        if self._shard is None:
            return
        shard, mask = self._shard, self._mask
        digest = shard.finish()
        mask_name, mask_digest = (mask.path.name, mask.finish()) if mask is not None else ("", "")
        self._shard = self._mask = None
        self._parts.append(
            whole_shard(shard.path.name, shard.path, shard.n_tokens, digest, mask=mask_name, mask_sha256=mask_digest)
        )


def whole_shard(
    stored_path: str,
    path: Path,
    n_tokens: int,
    sha256: str,
    *,
    mask: str = "",
    mask_sha256: str = "",
    raw_dtype: str = "",
) -> Part:
    """All tokens of a shard as one part. Raises OSError."""
    size = path.stat().st_size
    return Part(
        path=stored_path,
        size_bytes=size,
        n_tokens=n_tokens,
        sha256=sha256,
        start=0,
        stop=n_tokens,
        mask=mask,
        mask_sha256=mask_sha256,
        raw_dtype=raw_dtype,
    )
