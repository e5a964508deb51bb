"""One optimizer step of a run without its data, log and checkpoints: for the planner's trace and probe.

Model, strategies and optimizer are the run's own, and the step is the trainer's `optimizer_step`; only the tokens are
made up. Memory does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from torch import Tensor

from gpuworkbench import registry
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.hybrid.off import NoHybrid
from gpuworkbench.memory.phase_precision import PHASES, PhasePrecision, grad_scaler
from gpuworkbench.memory.strategy import Strategy, StrategyContext
from gpuworkbench.models.base import LanguageModel
from gpuworkbench.training.batches import MicroBatch
from gpuworkbench.training.loop import optimizer_step
from gpuworkbench.training.optim import build_optimizer
from gpuworkbench.training.setup import apply_memory_strategies, make_forward

OF_PHASES = tuple(f"precision_{phase}" for phase in PHASES)
MAX_MICRO_BATCHES = 2  # the second finds the gradients of the first; more change nothing


class StepRig:
    """What `optimizer_step` reads of a run, in one `precision` (fp32, bf16, fp16, auto). `on_micro_batch` is called
    before each micro-batch."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        precision: str,
        *,
        n_micro_batches: int | None = None,
        on_micro_batch: Callable[[], object] = lambda: None,
    ) -> None:
        self.config, self.device = config, device
        self.n_micro_batches = n_micro_batches or min(config.train.grad_accum_steps, MAX_MICRO_BATCHES)
        self.on_micro_batch = on_micro_batch
        memory = msgspec.structs.replace(config.memory, precision=precision, **dict.fromkeys(OF_PHASES))
        precisions = PhasePrecision.of(msgspec.structs.replace(config, memory=memory), device)
        entry = registry.lookup(registry.MODELS, config.model.family, "model.family")
        with torch.device(device):
            self.model: LanguageModel = registry.load(entry.implementation)(config.model)
        self.strategies: list[Strategy] = [precisions, *apply_memory_strategies(self.model, config)]
        self.optimizer = build_optimizer(self.model, config.optimizer, device, config.memory, config.train.seed)
        context = StrategyContext(self.model, self.optimizer, device, _ignore, lambda: 0)
        for strategy in self.strategies:
            strategy.attach(context)
        self._run: Any = SimpleNamespace(
            config=config,
            curriculum=SimpleNamespace(place=lambda tokens: self._place()),
            progress=SimpleNamespace(step=0, tokens_seen=0, sequences_seen=0, skipped_sequences=0),
            strategies=self.strategies,
            hybrid=NoHybrid(),  # a true step; what a jump takes is for the formulas to say
            train_batches=SimpleNamespace(of_step=lambda position, place: self._batches()),
            forward=make_forward(self.model, config, precisions, device),
            scaler=grad_scaler(precisions, device),
            optimizer=self.optimizer,
            model=self.model,
        )

    def step(self) -> None:
        """One optimizer step."""
        optimizer_step(self._run)

    def gradients(self) -> list[Tensor]:
        """Those that are there now."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _place(self) -> Any:
        return SimpleNamespace(stage=SimpleNamespace(grad_accum_steps=self.n_micro_batches))

    def _batches(self) -> Iterator[MicroBatch]:
        shape = (self.config.train.micro_batch_size, self.config.train_seq_len)
        for _ in range(self.n_micro_batches):
            self.on_micro_batch()
            tokens = torch.arange(shape[0] * shape[1], device=self.device).view(shape) % self.config.model.vocab_size
            yield MicroBatch(tokens, tokens.clone())


def _ignore(*_: object, **__: object) -> None:
    return None
