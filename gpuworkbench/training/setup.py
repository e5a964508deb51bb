"""Builds everything a training run consists of, from its directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gpuworkbench import registry
from gpuworkbench.config.curriculum import Curriculum
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.data import PreparedData, check_eval_tokens
from gpuworkbench.data.tokenization.tokenizer import Tokenizer
from gpuworkbench.events.index import IndexKeeper
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.hybrid.off import NoHybrid
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.hybrid.weight_average import NoAverage
from gpuworkbench.memory.optimizer_in_backward import refuse_scaler
from gpuworkbench.memory.phase_precision import PhasePrecision, grad_scaler
from gpuworkbench.memory.precision import autocast
from gpuworkbench.memory.strategy import Strategy, StrategyContext
from gpuworkbench.memory.weights import Weights, weights_of
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.parts import Part, Stateful
from gpuworkbench.runs.heartbeat import HeartbeatWriter
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.activity import Activity
from gpuworkbench.training.batches import TrainBatches
from gpuworkbench.training.checkpoint import Checkpointer
from gpuworkbench.training.controls import Controls
from gpuworkbench.training.device import Device, set_up_device
from gpuworkbench.training.evaluate import Rows
from gpuworkbench.training.optim import build_optimizer
from gpuworkbench.training.phases import Phases
from gpuworkbench.training.prediction import add_prediction
from gpuworkbench.training.pretrained import Loaded, make_model
from gpuworkbench.training.settings import LiveSettings
from gpuworkbench.training.state import ModelState, OptimizerState, Progress, RngState, ScalerState
from gpuworkbench.training.telemetry import StepTelemetry

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MakeModel = Callable[[RunConfig, torch.device], LanguageModel]


@dataclass
class TrainingRun:
    """One run in memory. `parts` is what a checkpoint holds; everything else is derived from the config."""

    paths: RunPaths
    config: RunConfig
    device: Device
    precisions: PhasePrecision
    model: LanguageModel
    forward: Forward
    optimizer: torch.optim.Optimizer
    weights: Weights
    strategies: list[Strategy]
    phases: Phases
    scaler: torch.amp.GradScaler
    data: PreparedData
    tokenizer: Tokenizer
    train_batches: TrainBatches
    curriculum: Curriculum
    n_eval_batches: int
    progress: Progress
    settings: LiveSettings
    parts: dict[str, Stateful]
    events: EventWriter
    heartbeat: HeartbeatWriter
    checkpointer: Checkpointer
    index: IndexKeeper
    telemetry: StepTelemetry
    hybrid: HybridTrainer | NoHybrid = field(default_factory=NoHybrid)
    average: NoAverage = field(default_factory=NoAverage)
    controls: Controls | None = None
    start_event_fields: dict[str, Any] = field(default_factory=dict)
    notices: list[tuple[str, str]] = field(default_factory=list)
    pretrained: Loaded | None = None  # what this attempt filled the model with, where it began with foreign weights
    activity: Activity = Activity.BETWEEN_STEPS
    draws: Part | None = None  # the generators as they were before this step
    eval_rows: Rows = field(default_factory=Rows)

    @property
    def max_steps(self) -> int:
        """Total optimizer steps; the launcher resolved it."""
        assert self.config.train.max_steps is not None
        return self.config.train.max_steps

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Parameters the optimizer moves, each once."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def build_run(
    paths: RunPaths,
    config: RunConfig,
    data: PreparedData,
    events: EventWriter,
    heartbeat: HeartbeatWriter,
    *,
    make: MakeModel = make_model,
) -> TrainingRun:
    """Model, optimizer, data and checkpointer of a run, freshly initialised. Raises WorkbenchErrors.

    With `train.init_from` the model has no values yet: a checkpoint gives them, else `load_pretrained`. Another `make`
    gives a model with other parts or frozen ones: everything else follows its trainable parameters.
    """
    device = set_up_device(config)
    precisions = PhasePrecision.of(config, device.torch_device)
    model = make(config, device.torch_device)
    torch.manual_seed(config.train.seed)
    strategies = [precisions, *apply_memory_strategies(model, config)]
    optimizer = build_optimizer(model, config.optimizer, device.torch_device, config.memory, config.train.seed)
    scaler = grad_scaler(precisions, device.torch_device)
    needs_scaler = any(precision.needs_scaler for precision in precisions.distinct)
    refuse_scaler(needs_scaler=needs_scaler, strategies=strategies)
    progress = Progress()
    settings = LiveSettings.of(config)
    parts: dict[str, Stateful] = {
        "model": ModelState(model),
        "optimizer": OptimizerState(model, optimizer, strategies),
        "rng": RngState(device.torch_device),
        "scaler": ScalerState(scaler),
        "progress": progress,
        "settings": settings,
    }
    context = StrategyContext(model, optimizer, device.torch_device, events.emit, lambda: progress.step)
    for strategy in strategies:
        strategy.attach(context)
        if strategy.has_state:
            parts[f"memory_{strategy.name}"] = strategy
    n_eval_batches, notices = _eval_batches(config, data)
    run = TrainingRun(
        paths=paths,
        config=config,
        device=device,
        precisions=precisions,
        model=model,
        forward=make_forward(model, config, precisions, device.torch_device),
        optimizer=optimizer,
        weights=weights_of(optimizer),
        strategies=strategies,
        phases=Phases(events, strategies, precisions.describe(config)),
        scaler=scaler,
        data=data,
        tokenizer=data.tokenizer(),
        train_batches=TrainBatches(
            data.tokens("train"),
            config.train_seq_len,
            config.data.seed,
            config.train.micro_batch_size,
            device.torch_device,
            reserved_tokens=config.reserved_tokens,
        ),
        curriculum=Curriculum.of(config),
        n_eval_batches=n_eval_batches,
        progress=progress,
        settings=settings,
        parts=parts,
        events=events,
        heartbeat=heartbeat,
        checkpointer=Checkpointer(
            paths,
            parts,
            events,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
            in_background=config.checkpoint.in_background,
            alive=lambda: heartbeat.progress(progress.step),
        ),
        index=IndexKeeper(paths.events),
        telemetry=StepTelemetry(
            events,
            device,
            precisions=precisions,
            interval_steps=config.steps_between_reads,
        ),
        notices=[*(("data", text) for text in data.warnings), *notices],
    )
    add_prediction(run)
    return run


def apply_memory_strategies(model: LanguageModel, config: RunConfig) -> list[Strategy]:
    """Apply each strategy of the registry that the configuration switches on; returns them in the registry's order."""
    made = (registry.load(target).from_config(config) for target in registry.MEMORY_STRATEGIES.values())
    strategies: list[Strategy] = [strategy for strategy in made if strategy is not None]
    for strategy in strategies:
        strategy.apply(model)
    return strategies


def make_forward(model: nn.Module, config: RunConfig, precisions: PhasePrecision, device: torch.device) -> Forward:
    """`(x, y) -> mean loss`, compiled where asked for, under the precision of the phase."""
    network: Any = model
    if config.device.compile != "off":
        mode = None if config.device.compile == "default" else config.device.compile
        network = torch.compile(model, mode=mode, dynamic=False)
        allow_recompiles(len(Curriculum.of(config).shapes()) * len(precisions.distinct))

    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with autocast(precisions.current, device):
            return network(x, y)

    return forward


def allow_recompiles(n_variants: int) -> None:
    """Let torch.compile make a kernel for each shape of a curriculum in each precision, in training and in validation.

    Beyond its limit (8) it falls back to eager execution, silently but for a line in trainer.log.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * n_variants + 2)


def _eval_batches(config: RunConfig, data: PreparedData) -> tuple[int, list[tuple[str, str]]]:
    if not config.eval.interval_steps:
        return 0, []
    n_batches, warning = check_eval_tokens(config, data.n_val_tokens)
    return n_batches, [("data", warning)] if warning else []
