"""Training a byte-level BPE on a sample of the corpus, with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpuworkbench.data.tokenization.tokenizer import BpeTokenizer

if TYPE_CHECKING:
    import tokenizers

SAMPLE_BYTES = 4 * 1024 * 1024  # of training text; more changes the merges little and costs seconds
MIN_VOCAB_SIZE = 258  # 256 bytes, a merge, end of text
MAX_VOCAB_SIZE = 1_000_000


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """`bpe-N` from texts: ids 0..255 are the bytes, then the merges in order, then end of text.

    The same texts give the same merges. A small corpus gives fewer merges, hence a smaller vocabulary.
    """
    numbers = train_library_tokenizer(texts, vocab_size - 1).get_vocab()
    byte_of = byte_of_character()
    tokens = [bytes(byte_of[character] for character in token) for token in sorted(numbers, key=numbers.__getitem__)]
    return BpeTokenizer(f"bpe-{vocab_size}", tokens, eot_id=len(tokens), vocab_size=len(tokens) + 1)


def train_library_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """The `tokenizers` library's own byte-level BPE of at most `vocab_size` tokens, without special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # heavy: only when a BPE is trained

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_of_character() -> dict[str, int]:
    """GPT-2's visible stand-ins for bytes: printable Latin-1 stands for itself, the rest is moved to U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (value for value in range(256) if value not in visible)
    return {chr(value): value for value in visible} | {chr(0x100 + i): value for i, value in enumerate(hidden)}
