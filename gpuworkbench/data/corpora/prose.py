"""Docstrings and topic texts as clean prose: what a small model can learn to write in two minutes."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

_UNDERLINE = re.compile(r"^\s*([*=~^\-_#.])\1{2,}\s*$")
_STARTS_SOMETHING = re.compile(r"[-*+•>@:#|.]|\d+[.)]\s|\w+\s+[-=:]{1,2}\s")
_WRAPPED_CHARS = 50  # a line at least this long was ended by the margin, not by its sentence
_SPACES = re.compile(r"\s+")
_MIN_DOCSTRING_CHARS = 40


def tidy(text: str) -> str:
    """Prose with heading underlines removed, wrapped paragraphs joined and at most one blank line in a row."""
    lines: list[str] = []
    last_chars = 0  # of the line before, as it stood in the text
    for raw in inspect.cleandoc(text).replace("``", "`").splitlines():
        line = raw.rstrip()
        if _UNDERLINE.match(line):
            continue
        if not line and (not lines or not lines[-1]):
            continue
        if lines and last_chars >= _WRAPPED_CHARS and _continues(lines[-1], line):
            lines[-1] = f"{lines[-1]} {line}"
        else:
            lines.append(line)
        last_chars = len(line)
    return "\n".join(lines).strip()


def _continues(previous: str, line: str) -> bool:
    """Whether `line` can go on with the paragraph of `previous`: both at the margin, and no list item or field."""
    at_margin = line and not line[0].isspace() and not previous[:1].isspace()
    return bool(at_margin) and not _STARTS_SOMETHING.match(line)


def guide(module_name: str, source: str) -> str:
    """A module's docstrings as one text: the module, then each documented class and function with its signature.

    Empty for a module without docstrings, or one this Python cannot parse.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    lines = source.splitlines()
    sections = [f"The {module_name} module\n\n{tidy(text)}"] if (text := ast.get_docstring(tree)) else []
    sections += (f"{heading}\n\n{tidy(text)}" for heading, text in _documented(tree, lines, module_name))
    return "\n\n".join(sections) + "\n" if sections else ""


def _documented(node: ast.AST, lines: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    """(heading, docstring) of every public definition below `node`, in source order."""
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.If | ast.Try):
            yield from _documented(child, lines, prefix)
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        text = ast.get_docstring(child)
        if text and len(text) >= _MIN_DOCSTRING_CHARS:
            yield _heading(child, lines, prefix), text
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, lines, f"{prefix}.{child.name}")


def _heading(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], prefix: str) -> str:
    """`class json.JSONDecoder` or `json.dump(obj, fp)`, from the definition's own lines."""
    if isinstance(node, ast.ClassDef):
        return f"class {prefix}.{node.name}"
    definition = _SPACES.sub(" ", " ".join(lines[node.lineno - 1 : node.body[0].lineno - 1])).strip()
    signature = definition.removeprefix("async ").removeprefix("def ").rstrip(": ")
    return f"{prefix}.{signature}"
