"""Cleaning text on its way to the tokenizer: line ends, control characters, Unicode normalisation.

A text arrives in chunks of any size, and what leaves must not depend on them. So text is held back from the last
place on where no rule reaches across: before a character that no rule changes and that composes with nothing before
it (the stable code points of Unicode Standard Annex 15).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

from gpuworkbench.data.corpora.documents import CHUNK_CHARS, chunked

Form = Literal["none", "nfc", "nfkc"]

_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}
# Carriage returns; vertical tab, form feed, next line, line and paragraph separator.
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Control characters but tab and newline; soft hyphen, zero width space, word joiner, byte order mark. The joiners
# U+200C and U+200D stay, since Persian, Indic scripts and emoji need them, and so do the marks of direction.
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff]")
_NO_BREAK_SPACES = ("\xa0", "\u2007", "\u202f")
# Printable ASCII, Cyrillic letters, kana, Han, Hangul syllables. Not the newline: it may follow a carriage return.
_STABLE = re.compile("[\t -~\u0400-\u0482\u048a-\u04ff\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]")
# What any rule of `data.clean` acts on: one look tells that most texts need nothing.
_UNCLEAN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u2007\u200b\u2028\u2029\u202f\u2060\ufeff]")


class Cleaner:
    """Applies `data.clean`, then `data.normalize`. `n_changed` counts the stretches of text that came out different."""

    def __init__(self, *, clean: bool, normalize: Form) -> None:
        self._clean = clean
        self._form = _FORMS.get(normalize)
        self.n_changed = 0

    @property
    def is_active(self) -> bool:
        """Whether any rule is on; without one, text passes as it is, in the chunks it came in."""
        return self._clean or self._form is not None

    def text(self, text: str) -> str:
        """A whole text, cleaned."""
        if not self.is_active or (text.isascii() and not self._clean):
            return text
        cleaned = _without_controls(text) if self._clean and _UNCLEAN.search(text) else text
        if self._form is not None:
            cleaned = unicodedata.normalize(self._form, cleaned)
        self.n_changed += cleaned != text
        return cleaned

    def chunks(self, chunks: Iterable[str]) -> Iterator[str]:
        """A text in chunks, cleaned: the same text, in the same chunks, however the given ones were cut."""
        return _rechunked(self._stretches(chunks)) if self.is_active else iter(chunks)

    def _stretches(self, chunks: Iterable[str]) -> Iterator[str]:
        carry = ""
        for chunk in chunks:
            carry += chunk
            cut = _last_stable(carry)
            if cut:
                yield self.text(carry[:cut])
                carry = carry[cut:]
        yield self.text(carry)


def _without_controls(text: str) -> str:
    text = _LINE_ENDS.sub("\n", text)
    for space in _NO_BREAK_SPACES:
        text = text.replace(space, " ")
    return _REMOVED.sub("", text)


def _last_stable(text: str) -> int:
    """Index of the last stable character, 0 where there is none."""
    return next((place for place in range(len(text) - 1, 0, -1) if _STABLE.match(text, place)), 0)


def _rechunked(stretches: Iterable[str]) -> Iterator[str]:
    """The same text in chunks of at most CHUNK_CHARS, cut where the whole text would be."""
    carry = ""
    for stretch in stretches:
        carry += stretch
        while len(carry) > CHUNK_CHARS:
            first = next(chunked(carry))
            yield first
            carry = carry[len(first) :]
    if carry:
        yield carry
