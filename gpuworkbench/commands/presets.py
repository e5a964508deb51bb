"""`gpuworkbench presets`: what can be trained, for which card, and whether a card here will do."""

from __future__ import annotations

import argparse
from typing import Any

from gpuworkbench.commands.output import print_json, print_table, say
from gpuworkbench.config.presets import Preset, iter_preset_paths, load_preset
from gpuworkbench.errors import ConfigError, DoesNotFitError, ExitCode
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.fit import select_device
from gpuworkbench.gpu.nvml import probe_cards
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import format_count


def run(arguments: argparse.Namespace) -> int:
    """List the presets; one that cannot be read is named on stderr and left out. Always exit 0."""
    cards = probe_cards()
    presets: list[Preset] = []
    for path in iter_preset_paths():
        try:
            presets.append(load_preset(str(path)))
        except ConfigError as error:
            say(f"gpuworkbench: {error.line()}")
    if arguments.json:
        print_json([describe(preset, cards) for preset in presets])
        return ExitCode.OK
    rows = []
    for preset in presets:
        about = describe(preset, cards)
        params = format_count(about["n_params"])
        rows.append([preset.name, about["card"] or "any machine", params, about["runs_here"], about["description"]])
    print_table(["NAME", "CARD", "PARAMS", "HERE", "DESCRIPTION"], rows, right=[2])
    return ExitCode.OK


def describe(preset: Preset, cards: list[Card]) -> dict[str, Any]:
    """One preset as `presets --json` prints it. `n_params` is null while the tokenizer decides the vocabulary."""
    known = with_known_vocabulary(preset.config)
    return {
        "name": preset.name,
        "path": str(preset.path),
        "description": preset.config.description,
        "card": preset.config.card.name if preset.config.card else None,
        "n_params": None if known is None else known.model.n_params(),
        "has_cpu_twin": preset.has_cpu_twin,
        "runs_here": runs_here(preset, cards),
    }


def runs_here(preset: Preset, cards: list[Card]) -> str:
    """`cuda`, `cpu`, or `cpu twin` where no card here will do."""
    try:
        return select_device(preset.config, cards, has_cpu_twin=preset.has_cpu_twin).kind
    except (ConfigError, DoesNotFitError):
        return "cpu twin" if preset.has_cpu_twin else "no"
