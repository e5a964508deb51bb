"""Which run was forked from which, as a tree: the families of some runs, from what their directories say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

MAX_ROWS = 500  # names in run files are foreign; a tree on a screen is bounded


class Origin(NamedTuple):
    """The run and step that a fork started from."""

    run_id: str
    step: int | None


class Branch(Struct, frozen=True, kw_only=True):
    """One line of the tree, parents before children. `is_there` is false for a parent that was deleted."""

    run_id: str
    depth: int
    from_step: int | None
    is_last: tuple[bool, ...]  # for each level, whether it is the last child there: what a tree's lines follow
    is_asked: bool
    is_there: bool

    @property
    def lines(self) -> str:
        """The tree's lines before the name."""
        if not self.depth:
            return ""
        stems = "".join("   " if last else "│  " for last in self.is_last[1:-1])
        return stems + ("└─ " if self.is_last[-1] else "├─ ")


def parse_origin(text: str) -> Origin | None:
    """`RUN@STEP` as run files store it; None where it says nothing."""
    run_id, separator, step = text.rpartition("@")
    if not separator:
        return Origin(text, None) if text else None
    return Origin(run_id, int(step)) if step.isascii() and step.isdigit() and len(step) < 16 else Origin(text, None)


def family_tree(asked: Iterable[str], forked_from: Mapping[str, str]) -> list[Branch]:
    """The families of the runs `asked` for. `forked_from` has every run there is, with "" for what is no fork.

    A run that claims to come from itself, however far around, is taken as a root.
    """
    wanted = dict.fromkeys(asked)
    origins = {run_id: parse_origin(text) for run_id, text in forked_from.items()}
    children: dict[str, list[str]] = {}
    for run_id, origin in sorted(origins.items()):
        if origin is not None:
            children.setdefault(origin.run_id, []).append(run_id)
    roots = dict.fromkeys(_root(run_id, origins) for run_id in wanted)
    rows: list[Branch] = []
    seen: set[str] = set()
    # A stack and not recursion: a chain of forks may be longer than Python's stack.
    for root in roots:
        stack: list[tuple[str, tuple[bool, ...]]] = [(root, (True,))]
        while stack and len(rows) < MAX_ROWS:
            run_id, is_last = stack.pop()
            if run_id in seen:
                continue
            seen.add(run_id)
            depth = len(is_last) - 1
            origin = origins.get(run_id)
            rows.append(
                Branch(
                    run_id=run_id,
                    depth=depth,
                    from_step=origin.step if origin is not None and depth else None,
                    is_last=is_last,
                    is_asked=run_id in wanted,
                    is_there=run_id in forked_from,
                )
            )
            stack += reversed(_numbered([child for child in children.get(run_id, ()) if child not in seen], is_last))
    return rows


def _numbered(children: Sequence[str], is_last: tuple[bool, ...]) -> list[tuple[str, tuple[bool, ...]]]:
    return [(child, (*is_last, index == len(children) - 1)) for index, child in enumerate(children)]


def _root(run_id: str, origins: Mapping[str, Origin | None]) -> str:
    path = {run_id}
    while (origin := origins.get(run_id)) is not None and origin.run_id not in path:
        run_id = origin.run_id
        path.add(run_id)
    return run_id
