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
from gpuworkbench.config.fields import Section
from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.loader import build
from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.errors import ConfigError

Keys = Mapping[str, Any]

PLAIN = "plain"
AS_CONFIGURED = "as configured"


# What bf16 weights are computed in, where the preset's precision is another: they leave no choice.
BF16: Keys = MappingProxyType({"weights": "bf16", "precision": "auto"})
PACKED: Keys = MappingProxyType({**BF16, "packed_optimizer": True})
STREAMED: Keys = MappingProxyType({"optimizer_offload": "streamed"})
CHUNKED_SELECTIVE: Keys = MappingProxyType({"chunked_cross_entropy": True, "activation_checkpointing": "selective"})


class Case(NamedTuple):
    """Keys of [memory] on top of the defaults; the micro-batch is divided, and tokens per step stay.

    `is_in_backward`: the update is made within backward, so that a step is one micro-batch and nothing is clipped.
    """

    name: str
    keys: Mapping[str, Any]
    micro_batch_divisor: int = 1
    is_in_backward: bool = False

    def train_keys(self, config: RunConfig) -> dict[str, Any]:
        """The keys of [train] it changes. Raises ConfigError where the micro-batch cannot be divided."""
        train = config.train
        if self.is_in_backward:
            sequences = train.micro_batch_size * train.grad_accum_steps
            return {"micro_batch_size": sequences, "grad_accum_steps": 1, "grad_clip_norm": 0.0}
        if self.micro_batch_divisor == 1:
            return {}
        wanted = train.micro_batch_size // self.micro_batch_divisor
        if wanted < 1:
            raise ConfigError("the micro-batch is one sequence already")
        return same_tokens(config, wanted)._asdict()


def _case(name: str, micro_batch_divisor: int = 1, **keys: Any) -> Case:
    is_in_backward = bool(keys.get("optimizer_in_backward"))
    return Case(name, MappingProxyType(keys), micro_batch_divisor, is_in_backward)


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
    _case("bf16 weights", **BF16),
    _case("bf16 weights, stochastic rounding", **BF16, stochastic_rounding=True),
    _case("packed AdamW", **PACKED),
    _case("packed AdamW, in backward", **PACKED, optimizer_in_backward=True),
    _case("streamed state", **STREAMED),
    _case("streamed state, bf16 weights", **BF16, **STREAMED),
    _case("chunked + selective", **CHUNKED_SELECTIVE),
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
    _case("chunked + selective + packed (rtx5080_1b)", **CHUNKED_SELECTIVE, **PACKED),
    _case("chunked + selective + streamed bf16 (rtx5080_1b_exact)", **CHUNKED_SELECTIVE, **BF16, **STREAMED),
)


class Planned(Struct, frozen=True, kw_only=True):
    """A case as it is measured: its whole configuration, or why it cannot be."""

    name: str
    changed: dict[str, Any]  # keys that differ from plain
    config: RunConfig | None
    refused: str = ""


def planned(config: RunConfig, names: frozenset[str] | None = None) -> Iterator[Planned]:
    """`plain` first, then the cases (those named, or all), and the configuration as it is where it differs.

    The hybrid trainer is off (`without_hybrid`), but where a key would be refused then: whoever measures makes the
    predicted stretch himself.
    """
    replace = msgspec.structs.replace
    hybrid = config.hybrid if config.hybrid.enabled else HybridConfig(enabled=True)
    precision = config.memory.precision
    plain = without_hybrid(replace(config, memory=MemoryConfig(precision=precision)))
    yield Planned(name=PLAIN, changed={}, config=plain)
    for case in CASES:
        if names is not None and case.name not in names:
            continue
        changed: dict[str, Any] = {}
        try:
            train_keys = case.train_keys(config)
            memory = MemoryConfig(**{"precision": precision, **case.keys})
            changed = _differing("memory", memory, plain.memory)
            train = replace(config.train, **train_keys)
            changed |= _differing("train", train, config.train)
            validation = replace(config.eval, micro_batch_size=config.eval_micro_batch_size)  # the same in all
            predicts = replace(hybrid, enabled=memory.optimizer_offload == "predict_aware")
            made = checked(replace(config, memory=memory, train=train, eval=validation, hybrid=predicts))
        except ConfigError as error:
            yield Planned(name=case.name, changed=changed, config=None, refused=error.message)
        else:
            yield Planned(name=case.name, changed=changed, config=made)
    own = _differing("memory", config.memory, plain.memory)
    if own and (names is None or AS_CONFIGURED in names):
        yield Planned(name=AS_CONFIGURED, changed=own, config=config)


def without_hybrid(config: RunConfig) -> RunConfig:
    """As it is measured: what the hybrid trainer holds itself would be in every figure."""
    return msgspec.structs.replace(config, hybrid=msgspec.structs.replace(config.hybrid, enabled=False))


def checked(config: RunConfig) -> RunConfig:
    """`config`, validated as a file of its own. Raises ConfigError."""
    return build(parse_toml(dump_toml(config), "the case"), "the case")


def _differing(section: str, made: Section, plain: Section) -> dict[str, Any]:
    """The keys of a section that are not as in `plain`."""
    values = msgspec.structs.asdict(made)
    return {f"{section}.{key}": value for key, value in values.items() if value != getattr(plain, key)}
