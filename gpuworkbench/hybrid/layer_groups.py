"""Which weights are predicted together: those of one block, and the rest by its first name."""

from __future__ import annotations

from collections.abc import Iterable


def layer_groups(names: Iterable[str]) -> list[list[str]]:
    """Weight names by group, in order: `h.3.attn.weight` and `h.3.mlp.bias` are of one, `wte.weight` is of another."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name), []).append(name)
    return list(groups.values())


def group_of(name: str) -> str:
    """The name up to its first number, else its first part."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])
