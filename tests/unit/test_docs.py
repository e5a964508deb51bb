"""The documentation holds: its links lead somewhere, its commands have flags and keys that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gpuworkbench import cli
from gpuworkbench.config.keys import known_keys

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"^ {4}(?:[A-Z_]+=\S+ )?gpuworkbench (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The words of each command in an indented block; what follows two spaces or `#` explains it.

    Lines of alternatives are not commands.
    """
    text = page.read_text().replace("\\\n", "")
    lines = [re.sub(r"--set\s+", "--set ", line) for line in _COMMAND.findall(text)]
    lines = [re.split(r"\s{2,}(?!--)", re.sub(r"\s+--", " --", line))[0].replace("$'", "'") for line in lines]
    return [shlex.split(line, comments=True) for line in lines if " | " not in line and "[" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_flags_and_keys_that_exist(page: Path) -> None:
    for words in commands(page):
        parsed = cli.parse(words)  # a UsageError names what is wrong
        sets = [text for name, value in vars(parsed).items() if name.endswith("sets") for text in value]
        for key in (text.partition("=")[0] for text in sets):
            assert key in known_keys() or key == "section.key", words


def test_there_are_commands_to_check() -> None:
    assert {"--tokenizer", "--chat", "--set", "--to"} <= {
        word for page in PAGES for each in commands(page) for word in each
    }
