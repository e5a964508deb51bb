"""Records as documents: plain text, a conversation, or a prompt with its completion, from JSONL and from parquet alike.

A conversation is written as plain text that any tokenizer can encode:

    System: You are brief.

    User: What is 2 + 2?

    Assistant: 4<end of text>User: And 3 + 3?

    Assistant: 6<end of text>

Each answer begins with the space after `Assistant:` and ends with an end-of-text token, so that a model learns to
stop; both are scored, what stands before is not. Prompts are encoded apart from answers, as they are when a model is
asked. A prompt with its completion is written as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from gpuworkbench.data.corpora.documents import Document, Mark, chunked

LossOn = Literal["auto", "all", "answers"]

ASSISTANT = "assistant"
HEADINGS = {"system": "System:", "user": "User:", ASSISTANT: "Assistant:"}
KNOWN_KEYS = '"text", "messages", or "prompt" and "completion"'


class RecordError(ValueError):
    """What is wrong with one record, in a few words; the caller knows where it stands."""


class _Message(msgspec.Struct):
    role: str
    content: str


class _Chat(msgspec.Struct):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]


class _Pair(msgspec.Struct):
    prompt: str
    completion: str


class _Text(msgspec.Struct):
    text: str


# A stretch of a record's text, and whether it is an answer, which an end of text follows. A plain tuple: there are
# millions of them.
Turn = tuple[str, bool]
_MARKS = {(scored, ends): Mark(scored, ends) for scored in (False, True) for ends in (False, True)}


def _chat_turns(record: _Chat) -> Iterator[Turn]:
    """What stands between two answers is one turn."""
    before = ""
    for number, message in enumerate(record.messages, start=1):
        if message.role not in HEADINGS:
            raise RecordError(f"message {number} has role {message.role!r}, not one of {', '.join(HEADINGS)}")
        heading = HEADINGS[message.role]
        if message.role == ASSISTANT:
            yield before + heading, False
            yield f" {message.content}", True
            before = ""
        else:
            before += f"{heading} {message.content}\n\n"
    if before:
        yield before, False


def _pair_turns(record: _Pair) -> Iterator[Turn]:
    yield record.prompt, False
    yield record.completion, True


def chat_prompt(question: str, system: str = "") -> str:
    """What a model reads before it answers `question`, exactly as a conversation of `messages` is written."""
    said = [_Message("system", system)] if system else []
    said += [_Message("user", question), _Message(ASSISTANT, "")]
    (prompt, _), _ = _chat_turns(_Chat(said))
    return prompt


class Layout(NamedTuple):
    """One way to lay a record out: the keys it needs, and how its turns are read; plain text has none."""

    description: str
    keys: tuple[str, ...]
    type: type[Any]
    turns: Callable[[Any], Iterator[Turn]] | None


CHAT = Layout("a conversation", ("messages",), _Chat, _chat_turns)
PAIR = Layout("a prompt with its completion", ("prompt", "completion"), _Pair, _pair_turns)
TEXT = Layout("text", ("text",), _Text, None)
LAYOUTS = (CHAT, PAIR, TEXT)  # a record that has the keys of several is the first of them


def layout_of(keys: Collection[str]) -> Layout | None:
    """The layout of a record with these keys, None where it has those of no layout."""
    return next((layout for layout in LAYOUTS if all(key in keys for key in layout.keys)), None)


def document_of(group: str, record: Any, layout: Layout, loss_on: LossOn) -> Document:
    """The document of a decoded record. Raises RecordError."""
    if layout.turns is None:
        if loss_on == "answers":
            raise RecordError("plain text has no answers, and data.loss_on is answers")
        text = record.text
        return Document(group, len(text) if text.isascii() else len(text.encode()), tuple(chunked(text)))
    chunks: list[str] = []
    marks: list[Mark] = []
    n_bytes = 0
    for text, is_answer in layout.turns(record):
        scored = is_answer or loss_on == "all"
        n_bytes += len(text) if text.isascii() else len(text.encode())
        chunks.append(text)  # whole: cleaning must see it so
        marks.append(_MARKS[scored, is_answer])
    return Document(group, n_bytes, chunks, marks)
