"""Our tokenizers as the files that `tokenizers` and `transformers` read: tokenizer.json and tokenizer_config.json.

A vocabulary of ranks holds no merges, so they are derived: a token's merge is the pair that the merges before it leave
of its bytes. The library then merges in the order of the ranks, which gives the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gpuworkbench.data.tokenization.bpe import byte_of_character
from gpuworkbench.data.tokenization.library_tokenizer import LibraryTokenizer
from gpuworkbench.data.tokenization.tokenizer import EOT_TEXT, GPT2_PATTERN, BpeTokenizer, ByteTokenizer, Tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_bytes, atomic_write_json

if TYPE_CHECKING:
    import tokenizers

LIBRARY_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_COUNTED = re.compile(r"(?<!\\)\{\d+(?:,\d*)?\}\+(.?)")


def write_tokenizer_json(tokenizer: Tokenizer, directory: Path, files: Files = REAL_FILES) -> None:
    """Write tokenizer.json and tokenizer_config.json into an existing directory.

    A tokenizer that came from a tokenizer.json is written as it came, with the config that lay beside it.

    `tokenizers.Tokenizer.from_file` and `transformers.AutoTokenizer` then give our ids; as everywhere in those
    libraries the text `<|endoftext|>` becomes the token of that name, unless `split_special_tokens=True` is passed.
    Raises OSError, and DataError for a tokenizer that the library cannot express.
    """
    if isinstance(tokenizer, LibraryTokenizer):
        atomic_write_bytes(directory / LIBRARY_FILE, tokenizer.library_json, files)
        config = msgspec.json.decode(tokenizer.config_json) or tokenizer_config(tokenizer.eot_text)
    else:
        library = to_library(tokenizer)
        atomic_write_bytes(directory / LIBRARY_FILE, library.to_str(pretty=True).encode() + b"\n", files)
        config = tokenizer_config()
    atomic_write_json(directory / CONFIG_FILE, config, files)


def tokenizer_config(eot_text: str = EOT_TEXT) -> dict[str, Any]:
    """tokenizer_config.json: what `transformers` wants to know beside the vocabulary."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eot_text,  # in training it stands before every document
        "eos_token": eot_text,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }


def to_library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer as an object of the `tokenizers` library. DataError where it cannot be expressed."""
    if isinstance(tokenizer, ByteTokenizer):
        return _library_bpe([bytes([value]) for value in range(256)], tokenizer.eot_id, pattern=None)
    if isinstance(tokenizer, BpeTokenizer):
        return _library_bpe(tokenizer.tokens, tokenizer.eot_id, pattern=tokenizer.pattern)
    raise DataError(f"the tokenizer {tokenizer.name!r} cannot be written as tokenizer.json")


def _library_bpe(tokens: Sequence[bytes], eot_id: int, pattern: str | None) -> tokenizers.Tokenizer:
    """A byte-level BPE of the library; without a pattern a text is one piece, and every byte stays alone."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers  # heavy: only to export

    visible = {value: character for character, value in byte_of_character().items()}

    def written(token: bytes) -> str:
        return "".join(visible[value] for value in token)

    ranks = {token: rank for rank, token in enumerate(tokens) if token}
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    if eot_id != len(vocabulary):
        vocabulary[EOT_TEXT] = eot_id  # the library counts on from the vocabulary's size unless told the id
    merges = [(written(left), written(right)) for left, right in merges_of(ranks)]
    # A piece that is a token as a whole is that token, whatever its merges would give: so does tiktoken.
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pattern is not None))
    if pattern is None or pattern == GPT2_PATTERN:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is not None)
    else:
        split = pre_tokenizers.Split(Regex(library_pattern(pattern)), behavior="isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(EOT_TEXT, special=True, normalized=False)])
    return library


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges of a vocabulary of ranks, in their order.

    A token that the merges before it cannot make of two parts has none; it is only met as a whole piece.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1 and len(parts := _merged(ranks, token, below=rank)) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def _merged(ranks: Mapping[bytes, int], piece: bytes, below: int) -> list[bytes]:
    """What the merges of a rank less than `below` make of a piece (Sennrich et al. 2016, in the order of ranks)."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        candidates = (ranks.get(parts[i] + parts[i + 1], below) for i in range(len(parts) - 1))
        rank, place = min((rank, place) for place, rank in enumerate(candidates))
        if rank >= below:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def library_pattern(pattern: str) -> str:
    """A split pattern of tiktoken's regular expressions in those of the library (Oniguruma, Ruby syntax).

    `{1,3}+` never gives back what it took in the former, and repeats in the latter. Where nothing follows that could
    want some of it back, `{1,3}` is the same; elsewhere DataError.
    """
    for match in _COUNTED.finditer(pattern):
        if match.group(1) not in ("", "|", ")"):
            raise DataError(f"the split pattern {pattern!r} cannot be written as tokenizer.json")
    return _COUNTED.sub(lambda match: match.group(0).replace("}+", "}"), pattern)
