"""The embedded corpus: readable, deterministic, the library and nothing else, quick to prepare."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from gpuworkbench.data import prepare
from gpuworkbench.data.corpora.documents import Document
from gpuworkbench.data.corpora.prose import guide, tidy
from gpuworkbench.data.corpora.stdlib_corpus import StdlibCorpus, open_stdlib
from gpuworkbench.data.split import splitter_for
from gpuworkbench.errors import DataError
from tests.fixtures.data_configs import data_config


@cache
def corpus() -> StdlibCorpus:
    return open_stdlib()


def text_of(document: Document) -> str:
    return "".join(document.chunks)


def test_documents_are_topics_guides_and_sources() -> None:
    texts: dict[str, list[str]] = {}
    for document in corpus().documents():
        texts.setdefault(document.group, []).append(text_of(document))
    assert texts["topic:for"][0].startswith('The "for" statement\n\nThe "for" statement is used to iterate over')
    json_guide, json_source = texts["module:json.decoder"]
    assert json_guide.startswith("The json.decoder module\n\nImplementation of JSONDecoder")
    assert "class json.decoder.JSONDecoder\n\n" in json_guide
    assert json_source.startswith('"""Implementation of JSONDecoder')
    assert len(texts["module:argparse"]) == 1  # long: its guide only


def test_only_the_library_itself() -> None:
    names = {module.name for module in corpus().modules}
    assert {"json", "json.decoder", "textwrap", "asyncio.queues"} <= names
    for excluded in ("test", "idlelib", "lib2to3", "encodings", "site-packages", "pydoc_data"):
        assert not any(name.split(".")[0] == excluded for name in names)
    assert not any(part.startswith("_") for name in names for part in name.split("."))


def test_four_tenths_are_prose() -> None:
    sizes = {"prose": 0, "source": 0}
    sources = {module.name: module.path for module in corpus().modules}
    for document in corpus().documents():
        kind, _, name = document.group.partition(":")
        is_source = kind == "module" and text_of(document) == sources[name].read_text(errors="replace")
        sizes["source" if is_source else "prose"] += document.n_bytes
    assert sum(sizes.values()) > 2_000_000
    assert 0.3 < sizes["prose"] / sum(sizes.values()) < 0.6


def test_a_module_s_documents_stay_in_one_split() -> None:
    splitter = splitter_for(corpus(), 0.05, 0)
    assert splitter.by_document
    groups: dict[str, set[str]] = {"train": set(), "val": set()}
    for document in corpus().documents():
        for split, _ in splitter.pieces(document):
            groups[split].add(document.group)
    assert len(groups["val"]) > 8
    assert not groups["val"] & groups["train"]


def test_stdlib_with_bpe_is_the_same_in_another_process(tmp_path: Path) -> None:
    prepared = prepare(data_config("stdlib", "bpe-2048"), cache_dir=tmp_path / "a")
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.fixtures.data_configs import data_config; from gpuworkbench.data import prepare\n"
        "print(prepare(data_config('stdlib', 'bpe-2048'), cache_dir=Path(sys.argv[1])).sha256)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == prepared.sha256
    assert prepared.warnings == ()
    assert prepared.n_val_tokens > 32_768
    tokens = prepared.tokens("val")
    assert prepared.tokenizer().decode(tokens.slice(0, 1)) == "<|endoftext|>"


def test_data_package_does_not_load_torch() -> None:
    code = "import sys, gpuworkbench.data, gpuworkbench.data.tokenization.bpe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_python_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no standard library sources"):
        open_stdlib(tmp_path)


def test_tidy_joins_wrapped_paragraphs_and_keeps_the_rest() -> None:
    raw = """Heading
    *******

    This sentence is long enough that the margin ended it,
    and it goes on here.
    Short line.
    Next line.


       for i in range(3):
           print(i)

    The first item of the following list is quite long too:
    - one
    - two
    """
    assert tidy(raw) == (
        "Heading\n\n"
        "This sentence is long enough that the margin ended it, and it goes on here.\n"
        "Short line.\nNext line.\n\n"
        "   for i in range(3):\n       print(i)\n\n"
        "The first item of the following list is quite long too:\n- one\n- two"
    )


def test_guide_lists_public_definitions_with_signatures() -> None:
    source = '''"""What the module is for, in a line."""

class Box:
    """A box that holds other things, at most ten of them."""

    def put(self,
            thing, *, where=None):
        """Put a thing into the box; raises ValueError when full."""

    def _hidden(self):
        """This method is private and so it is not in the guide."""

async def fetch(address: str) -> bytes:
    """Fetch what lies at an address, and return its bytes."""

def short():
    """Too short."""
'''
    assert guide("boxes", source) == (
        "The boxes module\n\nWhat the module is for, in a line.\n\n"
        "class boxes.Box\n\nA box that holds other things, at most ten of them.\n\n"
        "boxes.Box.put(self, thing, *, where=None)\n\nPut a thing into the box; raises ValueError when full.\n\n"
        "boxes.fetch(address: str) -> bytes\n\nFetch what lies at an address, and return its bytes.\n"
    )
    assert guide("broken", "def (") == ""
    assert guide("bare", "x = 1") == ""
