"""The vocabulary size that a tokenizer's name promises, for estimates made before any data was prepared."""

from __future__ import annotations

import msgspec

from gpuworkbench.config.schema import RunConfig

_SIZES = {
    "byte": 257,
    "gpt2": 50_257,
    "r50k_base": 50_257,
    "p50k_base": 50_281,
    "cl100k_base": 100_277,
    "o200k_base": 200_019,
}
_BPE_PREFIX = "bpe-"


def promised_vocab_size(tokenizer: str) -> int | None:
    """`bpe-8192` -> 8192, `gpt2` -> 50257; None for a name that promises nothing."""
    digits = tokenizer.removeprefix(_BPE_PREFIX)
    if digits != tokenizer and digits.isascii() and digits.isdigit() and len(digits) < 10:
        return int(digits) if int(digits) > _SIZES["byte"] else None
    return _SIZES.get(tokenizer)


def with_known_vocabulary(config: RunConfig) -> RunConfig | None:
    """The config with `model.vocab_size` filled in where the tokenizer decides it; None where nobody knows yet."""
    if config.model.vocab_size:
        return config
    size = config.data.bin_vocab_size if config.data.tokenizer == "ids" else promised_vocab_size(config.data.tokenizer)
    if size is None:
        return None
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, vocab_size=size))
