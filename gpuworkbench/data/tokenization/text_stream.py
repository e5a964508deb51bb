"""Text of tokens as they come, one piece a token. A token decoded alone can lose a space or show half a character."""

from __future__ import annotations

from collections.abc import Sequence

from gpuworkbench.data.tokenization.tokenizer import Tokenizer

MAX_HELD_TOKENS = 4  # UTF-8 has at most four bytes for a character
CONTEXT_TOKENS = 8
REPLACEMENT = "\ufffd"


class TextStream:
    """Decodes each token after the few before it, and holds back what is not a whole character yet."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt_ids)[-CONTEXT_TOKENS:]
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character's bytes are not all there."""
        self._held.append(token)
        return self._text(is_last=False)

    def flush(self) -> str:
        """The text of what is held back, once no token follows."""
        return self._text(is_last=True) if self._held else ""

    def _text(self, *, is_last: bool) -> str:
        before = self._tokenizer.decode(self._context)
        text = self._tokenizer.decode([*self._context, *self._held])
        if text.endswith(REPLACEMENT) and len(self._held) < MAX_HELD_TOKENS and not is_last:
            return ""
        if not text.startswith(before):  # a decoder that changes what it wrote; each stretch by itself then
            before, text = "", self._tokenizer.decode(self._held)
        self._context = [*self._context, *self._held][-CONTEXT_TOKENS:]
        self._held = []
        return text[len(before) :]
