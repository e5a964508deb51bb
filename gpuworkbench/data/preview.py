"""A look at what a model will read: the beginnings of a few training documents, as text and as tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.shards.token_array import TokenArray

PREVIEW_TOKENS = 96
_SEARCH_TOKENS = 65_536


@dataclass(frozen=True)
class Preview:
    """One stretch of training data. The texts are raw: `safe_text` stands between them and a screen."""

    text: str
    tokens: tuple[int, ...]
    decoded: tuple[str, ...]  # each token by itself; half of a character shows as U+FFFD
    scored: tuple[bool, ...] | None = None  # which tokens are targets, None where the split has no answer mask


def preview(prepared: PreparedData, n: int) -> list[Preview]:
    """At most `n` beginnings of documents, spread evenly over the training split; with which tokens are scored."""
    tokens, tokenizer = prepared.tokens("train"), prepared.tokenizer()
    starts = sorted({_document_start(tokens, len(tokens) * i // n, tokenizer.eot_id) for i in range(n)})
    previews = []
    for start in starts:
        length = min(PREVIEW_TOKENS, len(tokens) - start)
        ids, scored = tokens.slice(start, length), tokens.scored(start, length)
        pieces = tuple(tokenizer.decode([token]) for token in ids.tolist())
        marks = None if scored is None else tuple(scored.tolist())
        previews.append(Preview(tokenizer.decode(ids), tuple(ids.tolist()), pieces, marks))
    return previews


def _document_start(tokens: TokenArray, position: int, eot_id: int) -> int:
    """The first token after an end of text at or after `position`; `position` itself where none is near."""
    window = tokens.slice(position, min(_SEARCH_TOKENS, len(tokens) - position))
    found = np.flatnonzero(window == eot_id)
    start = position + int(found[0]) + 1 if found.size else position
    return start if start < len(tokens) else position
