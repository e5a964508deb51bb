"""One split's tokens on their way to the disk, in shards of bounded size, and where an interrupted one goes on."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from gpuworkbench.data.meta import Part
from gpuworkbench.data.shards.mask import MaskWriter, mask_of
from gpuworkbench.data.shards.shard_file import HEADER_BYTES, ShardWriter, variant_for
from gpuworkbench.data.split import Split
from gpuworkbench.io import REAL_FILES, Files

MAX_SHARD_TOKENS = 100_000_000
_READ_BYTES = 4 * 1024 * 1024


class SplitState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What of a split is on the disk: finished shards, and the beginning of the next."""

    parts: tuple[Part, ...] = ()
    open_tokens: int = 0
    open_sha256: str = ""
    open_mask_sha256: str = ""  # empty where that shard has no mask


class SplitWriter:
    """Appends tokens to `train-00000.bin`, `train-00001.bin`, ... of a directory. A context manager; raises OSError."""

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

    def save(self) -> SplitState:
        """Make what was appended durable (not its names) and say what it is."""
        parts = tuple(self._parts)
        if self._shard is None:
            return SplitState(parts=parts)
        return SplitState(
            parts=parts,
            open_tokens=self._shard.n_tokens,
            open_sha256=self._shard.save(),
            open_mask_sha256=self._mask.save() if self._mask is not None else "",
        )

    def restore(self, state: SplitState) -> bool:
        """Go on after what `save` described, before the first `append`; False where it is not on the disk any more."""
        directory, item_bytes = self._directory, np.dtype(self._variant.dtype).itemsize
        for part in state.parts:
            size = part.n_tokens * item_bytes
            if _digest(directory / part.path, HEADER_BYTES, size).hexdigest() != part.sha256:
                return False
            if part.mask and _digest(directory / part.mask, 0, part.n_tokens).hexdigest() != part.mask_sha256:
                return False
        self._parts = list(state.parts)
        if not state.open_tokens:
            return True
        path = self._next_path()
        digest = _digest(path, HEADER_BYTES, state.open_tokens * item_bytes)
        mask = _digest(mask_of(path), 0, state.open_tokens) if state.open_mask_sha256 else None
        if digest.hexdigest() != state.open_sha256 or (mask and mask.hexdigest() != state.open_mask_sha256):
            return False
        self._shard = ShardWriter(path, self._variant, self._files, n_tokens=state.open_tokens, digest=digest)
        if mask is not None:
            self._mask = MaskWriter(mask_of(path), state.open_tokens, self._files, digest=mask)
        return True

    def _next_path(self) -> Path:
        return self._directory / f"{self._split}-{len(self._parts):05}.bin"

    def _open(self) -> ShardWriter:
        self._shard = ShardWriter(self._next_path(), self._variant, self._files)
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


def _digest(path: Path, start: int, count: int) -> hashlib._Hash:
    """sha256 of `count` bytes from `start` on, of fewer where the file is shorter or missing."""
    digest = hashlib.sha256()
    with suppress(FileNotFoundError), path.open("rb") as stream:
        stream.seek(start)
        while count and (block := stream.read(min(count, _READ_BYTES))):
            digest.update(block)
            count -= len(block)
    return digest
