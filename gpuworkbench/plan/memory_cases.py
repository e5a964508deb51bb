"""What `bench memory` compares: each memory strategy alone, and combinations that make sense, as keys of [memory].

A case is a line here; it is measured through the keys alone, so whatever strategy stands behind them takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from gpuworkbench.config.accumulation import same_tokens
from gpuworkbench.config.loader import build
from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.errors import ConfigError

PLAIN = "plain"
AS_CONFIGURED = "as configured"


class Case(NamedTuple):
    """Keys of [memory] on top of the defaults; the micro-batch is divided, and tokens per step stay."""

    name: str
    keys: Mapping[str, Any]
    micro_batch_divisor: int = 1


def _case(name: str, micro_batch_divisor: int = 1, **keys: Any) -> Case:
    return Case(name, MappingProxyType(keys), micro_batch_divisor)


CASES = (
    _case("chunked cross-entropy", chunked_cross_entropy=True),
    _case("half the micro-batch", 2),
    _case("checkpointing: all", activation_checkpointing="all"),
    _case("checkpointing: every 2nd", activation_checkpointing="every_n"),
    _case("checkpointing: selective", activation_checkpointing="selective"),
    _case("activation offload", activation_offload=True),
    _case("bf16 products", precision="bf16"),
    _case("bf16 products in predict", precision_predict="bf16"),
    _case("predict-aware offload", optimizer_offload="predict_aware"),
    _case("chunked + selective", chunked_cross_entropy=True, activation_checkpointing="selective"),
    _case("chunked + all", chunked_cross_entropy=True, activation_checkpointing="all"),
    _case(
        "chunked + all + activation offload",
        chunked_cross_entropy=True,
        activation_checkpointing="all",
        activation_offload=True,
    ),
    _case(
        "chunked + all + predict-aware",
        chunked_cross_entropy=True,
        activation_checkpointing="all",
        optimizer_offload="predict_aware",
    ),
)


class Planned(Struct, frozen=True, kw_only=True):
    """A case as it is measured: its whole configuration, or why it cannot be."""

    name: str
    changed: dict[str, Any]  # keys that differ from plain
    config: RunConfig | None
    refused: str = ""


def planned(config: RunConfig, names: frozenset[str] | None = None) -> Iterator[Planned]:
    """`plain` first, then the cases (those named, or all), and the configuration as it is where it differs.

    The hybrid trainer is off in all of them: what it holds itself would be in every figure.
    """
    replace = msgspec.structs.replace
    config = replace(config, hybrid=replace(config.hybrid, enabled=False))
    precision = config.memory.precision
    plain = replace(config, memory=MemoryConfig(precision=precision))
    yield Planned(name=PLAIN, changed={}, config=plain)
    for case in CASES:
        if names is not None and case.name not in names:
            continue
        train = config.train
        wanted = train.micro_batch_size // case.micro_batch_divisor
        if wanted < 1:
            yield Planned(name=case.name, changed={}, config=None, refused="the micro-batch is one sequence already")
            continue
        changed: dict[str, Any] = {f"memory.{key}": value for key, value in case.keys.items()}
        sizes = same_tokens(config, wanted)
        if case.micro_batch_divisor > 1:
            changed |= {f"train.{key}": value for key, value in sizes._asdict().items()}
        made = replace(
            config,
            memory=MemoryConfig(**{"precision": precision, **case.keys}),
            train=replace(train, **sizes._asdict()),
        )
        try:
            yield Planned(name=case.name, changed=changed, config=checked(made))
        except ConfigError as error:
            yield Planned(name=case.name, changed=changed, config=None, refused=error.message)
    own = {
        f"memory.{key}": value
        for key, value in msgspec.structs.asdict(config.memory).items()
        if value != getattr(plain.memory, key)
    }
    if own and (names is None or AS_CONFIGURED in names):
        yield Planned(name=AS_CONFIGURED, changed=own, config=config)


def checked(config: RunConfig) -> RunConfig:
    """`config`, validated as a file of its own. Raises ConfigError."""
    return build(parse_toml(dump_toml(config), "the case"), "the case")
