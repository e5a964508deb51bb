"""Everything a config leaves open is decided once, when the run is created, and stored."""

from __future__ import annotations

import msgspec

from gpuworkbench.config.curriculum import Curriculum
from gpuworkbench.config.fields import MAX_STEPS
from gpuworkbench.config.memory_section import MemoryConfig
from gpuworkbench.config.optimizers import setting, spec_of
from gpuworkbench.config.schema import OptimizerConfig, RunConfig
from gpuworkbench.data import PreparedData, absolute_paths
from gpuworkbench.gpu.fit import DeviceChoice
from gpuworkbench.gpu.host import physical_cores

BF16_CAPABILITY = (8, 0)


def resolve(config: RunConfig, data: PreparedData, choice: DeviceChoice) -> RunConfig:
    """The config with every "chosen at creation" key filled in; what a trainer reads from run.toml."""
    replace = msgspec.structs.replace
    vocab_size = config.model.vocab_size or data.vocab_size
    train = replace(
        config.train,
        seq_len=config.train_seq_len,
        max_steps=resolve_steps(config, data.n_train_tokens),
        mode=config.train.mode or ("exact" if choice.kind == "cpu" else "fast"),
        threads=config.train.threads or physical_cores(),
    )
    device = replace(config.device, kind=choice.kind, index=choice.index, uuid=choice.uuid)
    memory = replace(config.memory, **resolve_precisions(config.memory, choice))
    return replace(
        config,
        model=replace(config.model, vocab_size=vocab_size),
        data=replace(absolute_paths(config.data), sha256=data.sha256, tokenizer_sha256=data.tokenizer_sha256),
        train=train,
        optimizer=resolve_optimizer(config.optimizer),
        memory=memory,
        device=device,
        cpu_twin={},
    )


def resolve_optimizer(config: OptimizerConfig) -> OptimizerConfig:
    """Every key of the optimizer with its value: another version's defaults must not change a run."""
    return msgspec.structs.replace(config, **{key: setting(config, key) for key in spec_of(config.name).keys})


def resolve_steps(config: RunConfig, n_train_tokens: int) -> int:
    """Total optimizer steps: the smaller of train.max_steps and what train.max_epochs amounts to."""
    limits = [config.train.max_steps] if config.train.max_steps is not None else []
    if config.train.max_epochs is not None:
        n_tokens = n_train_tokens - config.reserved_tokens
        limits.append(max(1, Curriculum.of(config).steps_for(config.train.max_epochs * n_tokens)))
    return min([*limits, MAX_STEPS])


def resolve_precisions(memory: MemoryConfig, choice: DeviceChoice) -> dict[str, str]:
    """memory.precision and each precision_<phase> that is set, without `auto` where the device is known."""
    names = ("precision", "precision_warmup", "precision_full", "precision_predict", "precision_correct")
    values = {name: getattr(memory, name) for name in names}
    if memory.weights == "bf16":  # then the products are, on whatever device
        values = {name: "bf16" if value == "auto" else value for name, value in values.items()}
    return {name: resolve_precision_name(value, choice) for name, value in values.items() if value is not None}


def resolve_precision_name(precision: str, choice: DeviceChoice) -> str:
    """`auto` as fp32 on CPU, bf16 from compute capability 8.0 on, fp16 before (Turing only emulates bf16)."""
    if precision != "auto":
        return precision
    if choice.kind == "cpu":
        return "fp32"
    capability = choice.card.compute_capability if choice.card else None
    if capability is None:
        return "auto"
    return "bf16" if tuple(capability) >= BF16_CAPABILITY else "fp16"
