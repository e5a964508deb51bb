"""The answer mask: written beside the tokens, part of their identity, cut into targets exactly where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.data import TokenArray
from gpuworkbench.data.corpora.documents import Document, Mark
from gpuworkbench.data.meta import open_tokens
from gpuworkbench.data.order import NOT_SCORED, SampleOrder, batch, validation_batch
from gpuworkbench.data.pipeline import encode_corpus
from gpuworkbench.data.shards.mask import map_mask, mask_of, scan_mask
from gpuworkbench.data.shards.split_writer import SplitWriter
from gpuworkbench.data.split import Split, Splitter, splitter_for
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer
from gpuworkbench.errors import DataError

EOT = 256


class Records:
    """A corpus of documents given one by one."""

    description = "records"
    fingerprint = "records"
    warnings = ()

    def __init__(self, *documents: Document) -> None:
        self._documents = documents

    @property
    def n_bytes(self) -> int:
        return sum(document.n_bytes for document in self._documents)

    def count_groups(self) -> int:
        return len(self._documents)

    def documents(self) -> Iterator[Document]:
        return iter(self._documents)


def dialogue(group: str, *turns: tuple[str, bool]) -> Document:
    """Turns of (text, is an answer)."""
    texts = [text for text, _ in turns]
    return Document(group, len("".join(texts)), texts, [Mark(answer, ends=answer) for _, answer in turns])


def encoded(corpus: Records, directory: Path) -> TokenArray:
    with SplitWriter(directory, "train", 257) as train, SplitWriter(directory, "val", 257) as val:
        writers: dict[Split, SplitWriter] = {"train": train, "val": val}
        encode_corpus(corpus, Splitter(0.1, 0, by_document=True), ByteTokenizer(), writers, lambda *_: None)
        parts = train.finish()
        val.finish()
    return open_tokens(directory, parts)


def test_answers_and_their_ends_are_scored_and_nothing_else(tmp_path: Path) -> None:
    corpus = Records(
        Document("plain", 2, ["ab"]),
        dialogue("talk", ("Q", False), ("yes", True), ("R", False), ("", True)),
        Document("more", 1, ["c"]),
    )
    tokens = encoded(corpus, tmp_path)
    everything = tokens.slice(0, len(tokens)).tolist()
    expected = [(EOT, 1), *((ord(c), 1) for c in "ab"), (EOT, 0), (ord("Q"), 0), *((ord(c), 1) for c in "yes")]
    expected += [(EOT, 1), (ord("R"), 0), (EOT, 1), (EOT, 1), (ord("c"), 1)]
    scored = tokens.scored(0, len(tokens))
    assert scored is not None
    assert list(zip(everything, scored.astype(int).tolist(), strict=True)) == expected
    assert tokens.count_scored() == sum(mark for _, mark in expected)


def test_text_without_marks_has_no_mask(tmp_path: Path) -> None:
    tokens = encoded(Records(Document("a", 3, ["abc"])), tmp_path)
    assert not tokens.has_mask
    assert tokens.scored(0, 2) is None
    assert tokens.count_scored() == len(tokens) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-00000.bin"]


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=8), limit=st.integers(1, 7))
def test_masks_follow_their_tokens_over_every_shard_border(
    pieces: list[tuple[int, int]], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against the same marks kept in one array; a shard has a mask file exactly when it holds an unscored token."""
    directory = tmp_path_factory.mktemp("shards")
    expected: list[bool] = []
    with SplitWriter(directory, "train", 300, max_shard_tokens=limit) as writer:
        for length, kind in pieces:
            scored = np.array([kind == 1 or (kind == 2 and i % 2 == 0) for i in range(length)])
            writer.append(np.arange(length), None if kind == 3 else scored)
            expected += [True] * length if kind == 3 else scored.tolist()
        parts = writer.finish()
    tokens = open_tokens(directory, parts)
    got = tokens.scored(0, len(tokens))
    assert expected == ([True] * len(tokens) if got is None else got.tolist())
    for number, part in enumerate(parts):
        here = expected[number * limit : (number + 1) * limit]
        assert bool(part.mask) == (not all(here))
        if part.mask:
            assert scan_mask(directory / part.mask, part.n_tokens) == part.mask_sha256


def test_targets_that_are_not_scored_are_left_out_of_batches() -> None:
    mask = np.arange(101) % 3 != 0
    tokens = TokenArray([np.arange(40, dtype=np.uint16), np.arange(40, 101, dtype=np.uint16)], [mask[:40], mask[40:]])
    order = SampleOrder(len(tokens), 8, seed=3)
    for x, y in (batch(tokens, order, 0, 5), batch(tokens, order, 7, 1), validation_batch(tokens, 1, 4, 8)):
        assert np.array_equal(y, np.where(mask[x + 1], x + 1, NOT_SCORED))
    half = TokenArray([np.arange(5), np.arange(5)], [None, np.array([1, 0, 1, 0, 1])])
    scored = half.scored(3, 4)
    assert scored is not None
    assert scored.tolist() == [True, True, True, False]
    with pytest.raises(IndexError, match=r"8\.\.11 of 10"):
        half.scored(8, 3)
    with pytest.raises(ValueError, match="one entry a token"):
        TokenArray([np.arange(5)], [np.ones(4)])


@pytest.mark.parametrize("n_documents", [2, 5, 40, 400])
def test_conversations_are_never_cut_and_some_are_held_out(n_documents: int) -> None:
    corpus = Records(*(dialogue(f"d:{i}", ("q", False), ("a", True)) for i in range(n_documents)))
    splitter = splitter_for(corpus, 0.05, seed=0)
    held_out = 0
    for document in corpus.documents():
        ((split, chunks),) = splitter.pieces(document)
        assert list(chunks) == ["q", "a"]
        held_out += split == "val"
    assert 0 < held_out < n_documents
    if n_documents < 160:
        assert held_out == max(1, round(n_documents * 0.05))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\1\0\2\1", "holds 2 at position 2"),
        (b"\1\0", "has 2 bytes, its shard has 4 tokens"),
        (b"\1" * 5, "has 5 bytes"),
        (b"", "0 bytes"),
    ],
)
def test_mask_that_does_not_fit_is_refused_with_both_numbers(content: bytes, reason: str, tmp_path: Path) -> None:
    path = mask_of(tmp_path / "train-00000.bin")
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        scan_mask(path, 4)


def test_mask_is_mapped_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "train.mask"
    path.write_bytes(b"\1\0\1")
    mask = map_mask(path, 3)
    assert isinstance(mask, np.memmap)
    assert mask.tolist() == [1, 0, 1]
