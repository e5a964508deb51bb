"""Keys that only some choices of their section's `name` have: beta2 means something to AdamW and nothing to SGD.

A key that would have no effect is refused. Where an override chooses another name, what the file says for the old one
goes away with it: `--set optimizer.name=sgd` works on a preset that sets beta2. So does the distance of recomputed
blocks where another way of activation checkpointing than every_n is chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpuworkbench import registry
from gpuworkbench.config.optimizers import spec_of

MODE_KEY, EVERY_KEY = "memory.activation_checkpointing", "memory.activation_checkpointing_every"
DEFAULT_NAMES = {"optimizer": "adamw", "schedule": "cosine"}
_SCHEDULE_KEYS = {"power": frozenset({"polynomial"}), "warmdown_shape": frozenset({"warmup_stable_decay"})}


def owners(section: str) -> Mapping[str, frozenset[str]]:
    """Key (without its section) -> the names that have it. Keys that every name has are not in it."""
    if section == "schedule":
        return _SCHEDULE_KEYS
    found: dict[str, frozenset[str]] = {}
    for name in registry.OPTIMIZERS:
        for key in spec_of(name).keys:
            found[key] = found.get(key, frozenset()) | {name}
    return found


def strays(section: str, values: Mapping[str, Any]) -> list[str]:
    """Keys that are set in a section's `values` though its name has no use for them."""
    name = values.get("name", DEFAULT_NAMES[section])
    return [key for key, names in owners(section).items() if values.get(key) is not None and name not in names]


def drop_strays(table: Mapping[str, Any], chosen: Collection[str]) -> dict[str, Any]:
    """`table` without the keys of an old name, in each section whose `name` is among the `chosen` (section.key).

    Keys that are chosen themselves stay, and are refused later with the flag that set them.
    """
    result = dict(table)
    for section in DEFAULT_NAMES:
        values = result.get(section)
        if f"{section}.name" in chosen and isinstance(values, Mapping) and isinstance(values.get("name"), str):
            gone = {key for key in strays(section, values) if f"{section}.{key}" not in chosen}
            result[section] = {key: value for key, value in values.items() if key not in gone}
    memory = result.get("memory")
    if MODE_KEY in chosen and EVERY_KEY not in chosen and isinstance(memory, Mapping):
        mode, every = MODE_KEY.partition(".")[2], EVERY_KEY.partition(".")[2]
        if memory.get(mode) != "every_n":
            result["memory"] = {key: value for key, value in memory.items() if key != every}
    return result
