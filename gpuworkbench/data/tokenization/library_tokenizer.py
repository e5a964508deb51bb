"""A tokenizer.json of somebody else (BPE, WordPiece, Unigram, ...), through the library that defines the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from gpuworkbench.data.tokenization.tokenizer import FORMAT, Ids, Saved, encodable
from gpuworkbench.errors import DataError

if TYPE_CHECKING:
    import tokenizers

MAX_VOCAB_SIZE = 2**24
REPLACEMENT = "\ufffd"
_EVERYTHING = "Aa é\u0301 漢字 \U0001f600\n\t  1,000 <x>"


class LibraryFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is stored: the library's file as it was, and the facts that were read from the files beside it."""

    format: Literal["gpuworkbench-tokenizer-1"] = FORMAT
    kind: Literal["library"] = "library"
    name: str
    vocab_size: int
    eot_id: int
    config: msgspec.Raw  # tokenizer_config.json, or null
    library: msgspec.Raw  # tokenizer.json


class LibraryTokenizer(Saved):
    """Ids as the library gives them, without the special tokens that a template would add."""

    def __init__(self, name: str, library_json: bytes, *, eot_id: int, config_json: bytes = b"null") -> None:
        """`library_json` is a tokenizer.json, `config_json` the tokenizer_config.json beside it. Raises ValueError."""
        self.library_json = library_json
        self.config_json = config_json
        self._library = parse_library(library_json)
        self._known = frozenset(self._library.get_vocab(with_added_tokens=True).values())
        self.name = name
        self.vocab_size = max(self._known) + 1
        self.eot_id = eot_id
        if eot_id not in self._known:
            raise ValueError(f"the end-of-text id {eot_id} is not in its vocabulary of {self.vocab_size}")

    @cached_property
    def eot_text(self) -> str:
        """How the vocabulary writes the end-of-text token."""
        return str(self._library.id_to_token(self.eot_id))

    @property
    def is_exact(self) -> bool:
        """Whether an ordinary text comes back as it was; some kinds lower-case, drop or respace."""
        return self.decode(self.encode(_EVERYTHING)) == _EVERYTHING

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are ordinary text. DataError where the vocabulary cannot write it."""
        (ids,) = self.encode_batch([text])
        return [int(each) for each in ids]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of several texts, each uint32 (N,), on all cores (the library's own threads)."""
        texts = [encodable(text) for text in texts]
        encode = getattr(self._library, "encode_batch_fast", self._library.encode_batch)  # without offsets, if it can
        try:
            encodings = encode(texts, add_special_tokens=False)
        except Exception as error:  # noqa: BLE001 - the library raises nothing more special
            raise DataError(f"the tokenizer {self.name!r} cannot encode the text: {_first_line(error)}") from None
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of ids; partial UTF-8 and ids without a token become U+FFFD."""
        return "".join(self._decode_known(run) if run else REPLACEMENT for run in self._runs(ids))

    def _runs(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> Iterator[list[int]]:
        """Stretches of ids that have a token, and an empty list for each id between that has none."""
        run: list[int] = []
        for each in map(int, ids):
            if each in self._known:
                run.append(each)
                continue
            if run:
                yield run
            yield []
            run = []
        if run:
            yield run

    def _decode_known(self, ids: list[int]) -> str:
        try:
            return str(self._library.decode(ids, skip_special_tokens=False))
        except Exception:  # noqa: BLE001 - a decoder that its own vocabulary does not suit; never raises is our promise
            return "".join(self._library.id_to_token(each) or REPLACEMENT for each in ids)

    def _file(self) -> LibraryFile:
        return LibraryFile(
            name=self.name,
            vocab_size=self.vocab_size,
            eot_id=self.eot_id,
            config=msgspec.Raw(self.config_json.strip()),
            library=msgspec.Raw(self.library_json.strip()),
        )


def parse_library(library_json: bytes) -> tokenizers.Tokenizer:
    """The library's object of a tokenizer.json, set to read special tokens in a text as text. Raises ValueError."""
    from tokenizers import Tokenizer  # heavy: loaded when such a tokenizer is really used

    library: tokenizers.Tokenizer = _guarded(Tokenizer.from_str, library_json.decode("utf-8"))
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    numbers = library.get_vocab(with_added_tokens=True)
    if not library.get_vocab(with_added_tokens=False):
        raise ValueError("its vocabulary is empty")
    if max(numbers.values()) >= MAX_VOCAB_SIZE:
        raise ValueError(f"it has an id of {max(numbers.values())}, more than {MAX_VOCAB_SIZE} are not supported")
    return library


def special_tokens(library: tokenizers.Tokenizer) -> dict[str, int]:
    """The special tokens of a file, by their text."""
    added = library.get_added_tokens_decoder().items()
    return {token.content: number for number, token in added if token.special}


def restore_library(content: bytes) -> LibraryTokenizer:
    """The tokenizer of a saved `LibraryFile`. Raises ValueError, msgspec.MsgspecError."""
    stored = msgspec.json.decode(content, type=LibraryFile)
    tokenizer = LibraryTokenizer(
        stored.name, bytes(stored.library), eot_id=stored.eot_id, config_json=bytes(stored.config)
    )
    if tokenizer.vocab_size != stored.vocab_size:
        raise ValueError(f"vocab_size is {stored.vocab_size}, its library file has {tokenizer.vocab_size}")
    return tokenizer


def _guarded(parse: Any, text: str) -> Any:
    """`parse(text)`; whatever the library says of a bad file becomes ValueError, its panics too."""
    try:
        return parse(text)
    except Exception as error:  # noqa: BLE001 - the library raises nothing more special
        raise ValueError(_first_line(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the binding's, derived from BaseException
            raise
        raise ValueError("the tokenizers library fails on it") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
