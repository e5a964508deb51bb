"""Synthetic tokens with a known entropy rate: what a perfect model's loss converges to is a number on paper.

A Markov chain over M symbols: each step adds one of four fixed, distinct increments (mod M), chosen with probability
1/2, 1/4, 1/8, 1/8. The four successors of a symbol are distinct, so the entropy rate is exactly the entropy of the
choice, 1.75 bits; every symbol is equally frequent. A keyed permutation spreads the symbols over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gpuworkbench.data.order import permute

ENTROPY_RATE_NATS = 1.75 * math.log(2)
MAX_SYMBOLS = 1024  # few enough that a short run sees every transition
_BRANCH_OF_BITS = np.array([0, 0, 0, 0, 1, 1, 2, 3])
_BLOCK = 1 << 20


def synthetic_blocks(n_tokens: int, vocab_size: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """The first `n_tokens` of the chain in blocks (N,), ids below `vocab_size`; the last id is never used.

    Only raw bits of the Philox counter generator are used: they are the same in every numpy version.
    """
    n_symbols = min(vocab_size - 1, MAX_SYMBOLS)
    symbols = permute(np.arange(n_symbols, dtype=np.int64), vocab_size - 1, seed, 0)
    increments = permute(np.arange(4, dtype=np.int64), n_symbols, seed, 1)
    generator = np.random.Philox(key=seed)
    state = 0
    for start in range(0, n_tokens, _BLOCK):
        bits = generator.random_raw(min(_BLOCK, n_tokens - start)) >> np.uint64(61)
        walk = (np.cumsum(increments[_BRANCH_OF_BITS[bits]]) + state) % n_symbols
        state = int(walk[-1])
        yield symbols[walk]
