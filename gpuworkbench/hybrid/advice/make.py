"""Builds the advice that a configuration asks for; what is off is a null object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.hybrid.advice.bandit import BanditAdvice, arms_of
from gpuworkbench.hybrid.advice.corrector import CorrectorAdvice
from gpuworkbench.hybrid.advice.dynamics import DynamicsAdvice
from gpuworkbench.hybrid.advice.monitor import MonitorAdvice
from gpuworkbench.hybrid.advice.tuner import TunerAdvice
from gpuworkbench.hybrid.components import NoAdvice
from gpuworkbench.hybrid.cost import Costs, cost_table


class Advice(NamedTuple):
    """The pieces in the order in which they are told of steps."""

    dynamics: NoAdvice
    monitor: NoAdvice
    corrector: NoAdvice
    bandit: NoAdvice
    tuner: NoAdvice


def make_advice(
    config: RunConfig,
    *,
    n_params: int,
    weight_bytes: int,
    device: torch.device,
    predict: Callable[[int], float | None],
) -> Advice:
    """`predict(steps)`: the loss predicted where nothing corrects it."""
    hybrid = config.hybrid
    probe_tokens = hybrid.probe_sequences * config.train_seq_len
    costs = cost_table(n_params, config.tokens_per_step, probe_tokens, weight_bytes)
    step_flops = 6.0 * n_params * config.tokens_per_step
    where = device if hybrid.dynamics_device == "device" else torch.device("cpu")
    arms = arms_of(hybrid)
    skips = config.train.on_nonfinite == "rollback"
    return Advice(
        dynamics=DynamicsAdvice(config.train.seed, step_flops, where) if hybrid.dynamics else NoAdvice(),
        monitor=MonitorAdvice(hybrid.divergence_threshold, skips_nonfinite=skips),
        corrector=CorrectorAdvice(predict) if hybrid.corrector else NoAdvice(),
        bandit=BanditAdvice(arms, Costs(costs, is_exact=config.train.mode == "exact")) if hybrid.bandit else NoAdvice(),
        tuner=TunerAdvice(config) if hybrid.auto_tuning else NoAdvice(),
    )
