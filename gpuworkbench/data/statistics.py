"""What prepared data holds: counts, how much of the vocabulary is used, bytes a token, the share that is scored."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.shards.token_array import TokenArray
from gpuworkbench.data.split import SPLITS, Split

COUNTED_TOKENS = 64 * 1024 * 1024  # of a larger split, so many are counted, in blocks spread evenly
DECODED_TOKENS = 256 * 1024
FREQUENT = 10
_BLOCK_TOKENS = 1024 * 1024


class Frequent(msgspec.Struct, frozen=True, kw_only=True):
    """A token and how often it was counted. The text is raw."""

    id: int
    text: str
    count: int


class SplitStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One split. What was counted in a part of it only is a share."""

    tokens: int
    scored_tokens: int | None  # None where there is no answer mask: all are
    counted_tokens: int
    documents: int | None  # None where not every token was counted
    bytes_per_token: float | None  # of UTF-8 text, ends of text left out; None where there is no other token
    ids_seen: int


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Both splits, and their vocabulary."""

    vocab_size: int
    ids_seen: int
    frequent: tuple[Frequent, ...]
    splits: dict[Split, SplitStatistics]


def statistics(prepared: PreparedData) -> Statistics:
    """Count the tokens of both splits. Raises DataError where a shard changed."""
    tokenizer = prepared.tokenizer()
    total = np.zeros(prepared.vocab_size, dtype=np.int64)
    splits: dict[Split, SplitStatistics] = {}
    for split in SPLITS:
        tokens = prepared.tokens(split)
        counts = _count(tokens, prepared.vocab_size)
        total += counts
        counted = int(counts.sum())
        splits[split] = SplitStatistics(
            tokens=len(tokens),
            scored_tokens=tokens.count_scored() if tokens.has_mask else None,
            counted_tokens=counted,
            documents=int(counts[tokenizer.eot_id]) if counted == len(tokens) else None,
            bytes_per_token=_bytes_per_token(tokens, prepared),
            ids_seen=int(np.count_nonzero(counts)),
        )
    order = np.argsort(-total, kind="stable")[:FREQUENT].tolist()
    return Statistics(
        vocab_size=prepared.vocab_size,
        ids_seen=int(np.count_nonzero(total)),
        frequent=tuple(
            Frequent(id=each, text=tokenizer.decode([each]), count=int(total[each])) for each in order if total[each]
        ),
        splits=splits,
    )


def _count(tokens: TokenArray, vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each id occurs (V,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    stride = max(1, -(-len(tokens) // COUNTED_TOKENS)) * _BLOCK_TOKENS
    for start in range(0, len(tokens), stride):
        block = tokens.slice(start, min(_BLOCK_TOKENS, len(tokens) - start))
        counts += np.bincount(block, minlength=vocab_size)[:vocab_size]
    return counts


def _bytes_per_token(tokens: TokenArray, prepared: PreparedData) -> float | None:
    tokenizer = prepared.tokenizer()
    n_blocks = 16
    size = min(len(tokens), DECODED_TOKENS // n_blocks)
    n_bytes = n_tokens = 0
    for start in {(len(tokens) - size) * number // (n_blocks - 1) for number in range(n_blocks)}:
        ids = tokens.slice(start, size)
        ids = ids[ids != tokenizer.eot_id]
        n_tokens += len(ids)
        n_bytes += len(tokenizer.decode(ids).encode())
    return n_bytes / n_tokens if n_tokens else None
