"""`safe_text`: the one gate between foreign text and a terminal or a widget; and how wide text is there.

Text from data, logs, file names and checkpoints may hold escape sequences (ANSI, OSC 52), carriage returns or
bidirectional overrides. Here they become visible glyphs; nothing raw reaches a terminal.
"""

from __future__ import annotations

import re
import unicodedata

# C0 controls have pictures at U+2400..U+241F. Tab and newline are kept only where the caller asks for it.
_C0 = {code: chr(0x2400 + code) for code in range(0x20)}
_DEL = {0x7F: "\u2421"}
# C1 controls (an 8-bit CSI lives at 0x9B) and whatever is invisible or reorders: Unicode's categories Cf, Zl, Zp and
# Cs, and the letters and marks that Unicode calls default-ignorable. The two variation selectors that choose between
# text and emoji (U+FE0E, U+FE0F) stay.
_ESCAPED_RANGES = (
    (0x80, 0x9F),
    (0xAD, 0xAD),  # soft hyphen
    (0x34F, 0x34F),
    (0x600, 0x605),
    (0x61C, 0x61C),  # Arabic letter mark
    (0x6DD, 0x6DD),
    (0x70F, 0x70F),
    (0x890, 0x891),
    (0x8E2, 0x8E2),
    (0x115F, 0x1160),  # Hangul fillers
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),  # zero-width characters and directional marks
    (0x2028, 0x202E),  # line and paragraph separators, bidirectional embeddings and overrides
    (0x2060, 0x206F),  # word joiner, isolates, deprecated format characters
    (0x3164, 0x3164),
    (0xD800, 0xDFFF),  # lone surrogates, which no UTF-8 terminal can be sent
    (0xFE00, 0xFE0D),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x110BD, 0x110BD),
    (0x110CD, 0x110CD),
    (0x13430, 0x1343F),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),  # tag characters and variation selectors, which can carry hidden text
)
_ESCAPED = {code: f"<U+{code:04X}>" for first, last in _ESCAPED_RANGES for code in range(first, last + 1)}
_TABLE: dict[int, str] = {**_C0, **_DEL, **_ESCAPED}
_MULTILINE_TABLE = {code: glyph for code, glyph in _TABLE.items() if code not in (0x09, 0x0A)}
# One C-speed test that almost every clean string passes.
_SUSPECT = re.compile("[\x00-\x1f\x7f" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _ESCAPED_RANGES) + "]")


def safe_text(text: str, *, multiline: bool = False, max_chars: int | None = None) -> str:
    """Return `text` with every control, invisible or reordering character shown as a visible glyph.

    With `multiline`, newlines stay and tabs become four spaces. The result has at most `max_chars` characters; an
    ellipsis marks a cut.
    """
    if max_chars is not None:
        text = text[: max_chars + 1]  # glyphs are never shorter than what they stand for
    if _SUSPECT.search(text):
        text = text.translate(_MULTILINE_TABLE).replace("\t", "    ") if multiline else text.translate(_TABLE)
    if max_chars is not None and len(text) > max_chars:
        return text[: max_chars - 1] + "…" if max_chars > 0 else ""
    return text


def cell_width(text: str) -> int:
    """Columns that printable text takes: wide East Asian characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) != 0 for char in text)


def wrap_text(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken between words; a longer word is broken inside. At least one line."""
    lines = [""]
    for word in text.split():
        if lines[-1] and cell_width(lines[-1]) + 1 + cell_width(word) <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for char in word:
            if lines[-1] and cell_width(lines[-1]) + cell_width(char) > width:
                lines.append("")
            lines[-1] += char
    return lines
