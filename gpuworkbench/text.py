"""`safe_text`: the one gate between foreign text and a terminal or a widget.

Text from data, logs, file names and checkpoints may hold escape sequences (ANSI, OSC 52), carriage returns or
bidirectional overrides. Here they become visible glyphs; nothing raw reaches a terminal.
"""

from __future__ import annotations

import re

# C0 controls have pictures at U+2400..U+241F. Tab and newline are kept only where the caller asks for it.
_C0 = {code: chr(0x2400 + code) for code in range(0x20)}
_DEL = {0x7F: "\u2421"}
# C1 controls (an 8-bit CSI lives at 0x9B) and the invisible or reordering format characters.
_ESCAPED_CODES = (
    *range(0x80, 0xA0),
    0x061C,  # Arabic letter mark
    0x180E,
    *range(0x200B, 0x2010),  # zero-width characters and directional marks
    *range(0x2028, 0x202F),  # line and paragraph separators, bidirectional embeddings and overrides
    *range(0x2060, 0x2070),  # word joiner, isolates, deprecated format characters
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
    *range(0xD800, 0xE000),  # lone surrogates, which no UTF-8 terminal can be sent
    *range(0xE0000, 0xE0080),  # tag characters
)
_TABLE: dict[int, str] = {**_C0, **_DEL, **{code: f"<U+{code:04X}>" for code in _ESCAPED_CODES}}
_MULTILINE_TABLE = {code: glyph for code, glyph in _TABLE.items() if code not in (0x09, 0x0A)}
# One C-speed test that almost every clean string passes.
_SUSPECT = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def safe_text(text: str, *, multiline: bool = False, max_chars: int | None = None) -> str:
    """Return `text` with every control, invisible or reordering character shown as a visible glyph.

    With `multiline`, newlines stay and tabs become four spaces. `max_chars` cuts the result and marks the cut
    with an ellipsis.
    """
    if max_chars is not None and len(text) > max_chars:
        text = text[: max(max_chars - 1, 0)] + "…"
    if not _SUSPECT.search(text):
        return text
    if multiline:
        return text.translate(_MULTILINE_TABLE).replace("\t", "    ")
    return text.translate(_TABLE)
