"""Language models built from their torch-free configs. Imports torch."""

from __future__ import annotations

from typing import Any

import torch

from gpuworkbench import registry
from gpuworkbench.models.base import LanguageModel


def build_model(model_config: Any, *, seed: int) -> LanguageModel:
    """The model that `model_config` describes, on the CPU in fp32, with initial weights given by `seed` alone.

    The global random state is neither read nor changed. Memory is allocated once, and no default initialisation
    runs before ours. Raises ConfigError for an unknown `model.family`.
    """
    model = build_on_meta(model_config).to_empty(device="cpu")
    model.init_weights(torch.Generator(device="cpu").manual_seed(seed))
    return model


def build_on_meta(model_config: Any) -> LanguageModel:
    """The same module with shapes but no memory, for counting and planning."""
    entry = registry.lookup(registry.MODELS, model_config.family, "model.family")
    with torch.device("meta"):
        model: LanguageModel = registry.load(entry.implementation)(model_config)
    return model


def count_parameters(model_config: Any) -> int:
    """Parameters in memory (padding included, tied tensors once), counted on a model without memory."""
    return sum(parameter.numel() for parameter in build_on_meta(model_config).parameters())
