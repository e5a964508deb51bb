"""Filling a fresh model with published weights, one tensor at a time: no second copy of them is ever in memory.

Each file's bytes are hashed as they pass, so what is trained is what the run was created with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError
from gpuworkbench.hf.folder import Weights, identity, layout_of, unreadable
from gpuworkbench.hf.layout import TensorRule
from gpuworkbench.io.safetensors_reader import SafetensorsReader, StoredTensor
from gpuworkbench.memory.weights import Weights as ParameterWeights
from gpuworkbench.models import build_model, build_on_meta
from gpuworkbench.models.base import LanguageModel

PLAIN = ParameterWeights()  # held as they are
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Loaded(NamedTuple):
    """What a model was filled with."""

    folder: str
    n_tensors: int
    n_params: int
    dtypes: tuple[str, ...]


def make_model(config: RunConfig, device: torch.device) -> LanguageModel:
    """The run's model on `device`: with initial values, or room for weights that are loaded later.

    In the second case it is never on the host as a whole.
    """
    if config.train.init_from:
        return build_on_meta(config.model).to_empty(device=device)
    return build_model(config.model, seed=config.train.seed).to(device)


def load_pretrained(
    model: nn.Module,
    config: RunConfig,
    alive: Callable[[], None] = lambda: None,
    kept: ParameterWeights = PLAIN,
) -> Loaded:
    """Fill every parameter of `model` from `config.train.init_from`; `alive` is called after each tensor. `kept` is
    how the run keeps its weights: what holds more than the parameter does gets the value in full.

    Raises ConfigError where the folder is not there any more, is not what the run was created with, or holds NaN;
    the model must not be used then.
    """
    folder = Path(config.train.init_from)
    parameters = dict(model.named_parameters())
    filled: set[str] = set()
    digests = {}
    with Weights(folder, layout_of(config.model.family), config.model) as weights:
        for file, places in zip(weights.files, weights.placed, strict=True):
            digest = hashlib.sha256(file.header)
            for stored, rule in places:
                raw = _read(file, stored)
                digest.update(raw.numpy().data)
                if rule is not None:
                    value = raw.view(TORCH_DTYPES[stored.dtype]).view(stored.shape)
                    is_filled = rule.ours in filled
                    _put(value, rule, parameters[rule.ours], kept, is_filled=is_filled, where=folder)
                    filled.add(rule.ours)
                alive()
            digests[file.path.name] = digest.hexdigest()
        loaded = Loaded(str(folder), weights.n_tensors, config.model.n_params(), weights.dtypes)
    if identity(digests) != config.train.init_sha256:
        raise ConfigError(
            f"the weights in {folder} changed since this run was created "
            f"({identity(digests)[:12]} now, {str(config.train.init_sha256)[:12]} then)",
            "put them back, or start a new run",
        )
    return loaded


def _read(file: SafetensorsReader, stored: StoredTensor) -> Tensor:
    """The tensor's bytes, uint8 (N,)."""
    raw = torch.empty(stored.num_bytes, dtype=torch.uint8)
    try:
        file.read_into(stored, memoryview(raw.numpy().data))
    except OSError as error:
        raise unreadable(file.path, error) from None
    return raw


@torch.no_grad()
def _put(
    value: Tensor, rule: TensorRule, parameter: Tensor, kept: ParameterWeights, *, is_filled: bool, where: Path
) -> None:
    """Copy `value` into the first rows of its parameter, the other ones 0; compare where it is filled already."""
    if not torch.isfinite(torch.stack(torch.aminmax(value))).all():
        raise ConfigError(f"{where}: tensor {rule.published!r} holds NaN or Inf", "start from another copy")
    value = value.to(parameter.device)
    if rule.is_transposed:
        value = value.t()
    rows = value.shape[0]
    if not is_filled:
        whole = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        whole[:rows].copy_(value)
        kept.write(parameter, whole)
    elif not torch.equal(parameter[:rows], value.to(parameter.dtype)):
        raise ConfigError(
            f"{where}: lm_head.weight and wte.weight differ: the head is not tied",
            "start from a model with a tied head",
        )
