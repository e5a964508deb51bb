"""Cleaning does what Unicode says, however the text is cut; the sieve drops what it should and reports it."""

from __future__ import annotations

import random
import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data.corpora import cutting, records, sieve
from gpuworkbench.data.corpora.cleaning import Cleaner, Form
from gpuworkbench.data.corpora.cutting import cut_documents
from gpuworkbench.data.corpora.documents import CHUNK_CHARS, Document, Mark
from gpuworkbench.data.corpora.sieve import CleanCorpus, SeenTexts
from gpuworkbench.errors import DataError

# What rules act on or reach across: marks, jamo, returns, soft hyphens, ligatures, kana with marks, controls.
TRICKY = st.text(
    alphabet="aиеЕ e\u0301\u0306\u0308\u0323й\r\n\x0b\xa0\xad\u200b\x01\ufeff"
    "\u1100\u1161\u11a8각ﬁ½か\u3099\u2028한1\u09c7\u09be"
)
FORMS: tuple[Form, ...] = ("none", "nfc", "nfkc")


def cuts(text: str, places: list[int]) -> list[str]:
    """The text cut at the places, empty chunks and all."""
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


@settings(max_examples=250, deadline=None)
@given(
    text=st.one_of(TRICKY, st.text()),
    places=st.lists(st.integers(0, 200), max_size=8),
    clean=st.booleans(),
    form=st.sampled_from(FORMS),
)
def test_chunked_is_whole(text: str, places: list[int], clean: bool, form: Form) -> None:
    whole = Cleaner(clean=clean, normalize=form).text(text)
    assert "".join(Cleaner(clean=clean, normalize=form).chunks(cuts(text, places))) == whole
    if form != "none" and not clean:
        assert whole == unicodedata.normalize(form.upper(), text)  # type: ignore[arg-type]


def test_long_text_leaves_in_chunks_that_do_not_depend_on_those_it_came_in() -> None:
    text = "Съешь же ещё этих мягких французских булок,\r\nда выпей чаю. " * 12_000
    generator = random.Random(0)
    by_size: list[list[str]] = []
    for size in (1000, 65_537, len(text)):
        sizes = [generator.randrange(size // 2 + 1, size + 1) for _ in range(2 * len(text) // size + 2)]
        places = [sum(sizes[:number]) for number in range(1, len(sizes))]
        chunks = cuts(text, [place for place in places if place < len(text)])
        by_size.append(list(Cleaner(clean=True, normalize="nfc").chunks(chunks)))
    assert by_size[0] == by_size[1] == by_size[2]
    assert len(by_size[0]) > 1
    assert max(map(len, by_size[0])) <= CHUNK_CHARS
    assert "".join(by_size[0]) == text.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("clean", "form", "before", "after"),
    [
        (False, "nfc", "и\u0306 и е\u0308", "й и ё"),
        (False, "nfc", "й ё", "й ё"),
        (False, "none", "и\u0306", "и\u0306"),
        (False, "nfc", "за\u0301мок и замо\u0301к", "за\u0301мок и замо\u0301к"),  # stress: no such composed letters
        (True, "nfc", "за\u0301мок", "за\u0301мок"),
        (False, "nfc", "5\xa0кг", "5\xa0кг"),
        (False, "nfkc", "5\xa0кг, ﬁn, ½, №", "5 кг, fin, 1⁄2, No"),
        (True, "none", "5\xa0кг 1\u202f000", "5 кг 1 000"),
        (True, "none", "пере\xadнос", "перенос"),
        (True, "nfc", "и\xad\u0306", "й"),  # what is removed stands between them no more
        (True, "none", "a\r\nb\rc\nd\x0ce\u2028f\x85g", "a\nb\nc\nd\ne\nf\ng"),
        (True, "none", "\ufeffa\x00b\x1b[31mc\x7f\x9b\td\u200be", "ab[31mc\tde"),
        (True, "none", "👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),  # joiners carry meaning
    ],
)
def test_rules(clean: bool, form: Form, before: str, after: str) -> None:
    assert Cleaner(clean=clean, normalize=form).text(before) == after


class Texts:
    """A corpus of given documents."""

    description, fingerprint, warnings = "texts", "0", ()

    def __init__(self, *texts: str | Document) -> None:
        self._texts = texts
        self.n_bytes = 0

    def count_groups(self) -> int:
        return len(self._texts)

    def documents(self) -> Iterator[Document]:
        for number, text in enumerate(self._texts):
            yield Document(f"d{number}", 0, iter([text])) if isinstance(text, str) else text


def sifted(*texts: str | Document, **keys: Any) -> tuple[list[str], CleanCorpus]:
    corpus = CleanCorpus(Texts(*texts), DataConfig(**keys))
    return ["".join(document.chunks) for document in corpus.documents()], corpus


def test_equal_texts_are_kept_once() -> None:
    kept, corpus = sifted(
        "ёлка", " е\u0308лка\r\n", "ёлка?", "Ёлка", "ёлка\xad", dedup=True, normalize="nfc", clean=True
    )
    assert kept == ["ёлка", "ёлка?", "Ёлка"]
    report = corpus.report
    assert report is not None
    assert (report.kept_documents, report.kept_bytes, report.changed_documents) == (3, 8 + 9 + 8, 2)
    assert report.dropped["duplicate"].documents == 2
    assert report.dropped["duplicate"].bytes == len(" ёлка\n".encode()) + len("ёлка".encode())
    assert report.dropped["duplicate"].examples == ("d1: ёлка", "d4: ёлка")
    assert sifted("ёлка", "е\u0308лка", dedup=True)[0] == ["ёлка", "е\u0308лка"]  # not normalised: not equal


def test_min_chars_counts_characters_not_bytes_after_cleaning() -> None:
    kept, corpus = sifted("  шесть6 \n", "пять5", "x\xad\xad\xad\xad\xad", "", "12 45 78", min_chars=6, clean=True)
    assert kept == ["  шесть6 \n", "12 45 78"]
    assert corpus.report is not None
    assert {reason: part.documents for reason, part in corpus.report.dropped.items()} == {"too short": 2, "empty": 1}


@settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="aй \n\u0306", max_size=6), max_size=12),
    places=st.lists(st.integers(0, 10), max_size=4),
    min_chars=st.integers(0, 4),
    dedup=st.booleans(),
)
def test_the_sieve_is_its_definition_however_texts_are_cut(
    texts: list[str], places: list[int], min_chars: int, dedup: bool
) -> None:
    # Every other document comes in one piece, as lines and records do.
    documents = [Document(f"d{n}", 0, iter(cuts(text, places)) if n % 2 else (text,)) for n, text in enumerate(texts)]
    kept, corpus = sifted(*documents, min_chars=min_chars, dedup=dedup, normalize="nfc")
    expected: list[str] = []
    for text in (unicodedata.normalize("NFC", text) for text in texts):
        is_seen = dedup and text.strip() in [each.strip() for each in expected]
        if text and len(text.strip()) >= min_chars and not is_seen:
            expected.append(text)
    assert kept == expected
    assert corpus.report is not None
    assert corpus.report.kept_bytes == sum(len(text.encode()) for text in expected)
    dropped = sum(part.documents for part in corpus.report.dropped.values())
    assert dropped + corpus.report.kept_documents == len(texts)


def test_marked_chunks_stay_one_a_mark_and_belong_to_the_hash() -> None:
    marks = (Mark(scored=False), Mark(scored=True, ends=True))
    first = Document("a", 0, ["и\u0306?", ""], marks)
    kept = list(CleanCorpus(Texts(first), DataConfig(normalize="nfc", dedup=True)).documents())
    assert [list(document.chunks) for document in kept] == [["й?", ""]]
    assert kept[0].marks == marks
    both = [
        Document("a", 0, ["x", "y"], marks),
        Document("b", 0, ["xy", ""], marks),
        Document("c", 0, ["x", "y"], marks),
    ]
    kept_names = [each.group for each in CleanCorpus(Texts(*both), DataConfig(dedup=True)).documents()]
    assert kept_names == ["a", "b"]


def test_a_long_turn_is_cleaned_as_a_whole() -> None:
    decomposed, returns = "x" + "и\u0306" * CHUNK_CHARS, "x" + "a\r\n" * CHUNK_CHARS
    record = msgspec.convert({"prompt": decomposed, "completion": returns}, records.PAIR.type)
    document = records.document_of("a", record, records.PAIR, "auto")
    (kept,) = CleanCorpus(Texts(document), DataConfig(normalize="nfc", clean=True)).documents()
    chunks, marks = list(kept.chunks), list(kept.marks or ())
    assert "".join(chunks) == "x" + "й" * CHUNK_CHARS + "x" + "a\n" * CHUNK_CHARS
    assert max(map(len, chunks)) <= CHUNK_CHARS
    answer = "".join(chunk for chunk, mark in zip(chunks, marks, strict=True) if mark.scored)
    assert answer == "x" + "a\n" * CHUNK_CHARS
    assert [mark.ends for mark in marks] == [False] * (len(marks) - 1) + [True]


def test_a_document_too_long_for_the_memory_waits_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "_HELD_CHARS", 10)
    long = [f"часть {number} \ud800" for number in range(9)]
    texts = [Document(name, 0, iter(long)) for name in ("a", "b")]
    corpus = CleanCorpus(Texts(*texts, "other"), DataConfig(dedup=True), exact_sizes=True)
    documents = [(each.group, each.n_bytes, list(each.chunks)) for each in corpus.documents()]
    assert documents == [
        ("a", sum(len(part.encode("utf-8", "surrogatepass")) for part in long), long),
        ("d2", 5, ["other"]),
    ]


def test_sixteen_bytes_a_document() -> None:
    generator = random.Random(1)
    digests = [generator.randbytes(16) for _ in range(60_000)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    seen = SeenTexts()
    assert all(seen.add(digest) for digest in digests)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used < 60_000 * 16 * 1.3 + 4096 * 100  # shelves of 15 entries here; the slack of a bytearray is an eighth
    assert not any(seen.add(digest) for digest in digests)


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet="ab \r\n", max_size=30), places=st.lists(st.integers(0, 40), max_size=5))
def test_lines_and_paragraphs_however_the_text_is_cut(text: str, places: list[int]) -> None:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found = [("".join(each.chunks), each.group) for each in cut_documents("f", 0, cuts(text, places), "line")]
    assert found == [(line, f"f:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    paragraphs: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number > 1 and lines[number - 2].strip():
            paragraphs[-1] = (f"{paragraphs[-1][0]}\n{line}", paragraphs[-1][1])
        else:
            paragraphs.append((line, f"f:{number}"))
    assert [
        ("".join(each.chunks), each.group) for each in cut_documents("f", 0, cuts(text, places), "paragraph")
    ] == paragraphs


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("cut", "between"), [("line", 1), ("paragraph", 2)])
def test_documents_are_counted_whatever_the_line_ends(cut: cutting.Cut, between: int, end: str, tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(("text" + between * end).encode() * 500)
    assert abs(cutting.count_documents(path, cut) - 500) <= 1


@pytest.mark.parametrize("cut", ["line", "paragraph"])
def test_a_line_too_long_to_hold_is_refused(cut: cutting.Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MAX_DOCUMENT_CHARS", 1000)
    with pytest.raises(DataError, match=r"f\.txt holds a line or paragraph of more than 1000") as caught:
        list(cut_documents("f.txt", 0, ["a" * 100] * 20, cut))
    assert "data.documents=file" in caught.value.hint
