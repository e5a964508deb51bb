"""The learning rate over the run, as a multiple of optimizer.lr: pure functions of the step, so resume needs no state.

Steps are numbered from 1. With W warm-up steps, D steps in all and m = min_lr_fraction:

    warm-up   step <= W   step / (W + 1): never 0, and the first step after the warm-up is at the peak
    decay     step > W    m + (1 - m) f(p) with p = (step - 1 - W) / (D - W): 0 at the first step after the warm-up,
                          1 one step after the last, so that no step is wasted on a rate of 0

which is nanoGPT's convention with its iteration number it = step - 1. Warm-ups and warm-downs that are longer than
the run are shortened. A step beyond D gets the decay's end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gpuworkbench import registry
from gpuworkbench.config.schema import ScheduleConfig

DEFAULT_POWER = 2.0
INVERSE_SQRT_STEPS = 10_000
# How a warm-down falls, as a function of the share that remains.
_FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda remaining: remaining,
    "1-sqrt": lambda remaining: 1.0 - math.sqrt(1.0 - remaining),
    "cosine": lambda remaining: 0.5 * (1.0 - math.cos(math.pi * remaining)),
}


def lr_multiplier(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Multiple of the peak learning rate at `step`, in [0, 1]. Raises ConfigError for an unknown schedule.name."""
    schedule = registry.load(registry.lookup(registry.SCHEDULES, config.name, "schedule.name"))
    return schedule(step, config, max_steps)


def constant(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Warm-up, then the peak to the end."""
    warmup_steps = _warmup_steps(config, max_steps)
    return _rise(step, warmup_steps) if step <= warmup_steps else 1.0


def cosine(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Warm-up, then half a cosine: f(p) = (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, without restarts)."""
    warmup_steps = _warmup_steps(config, max_steps)
    if step <= warmup_steps:
        return _rise(step, warmup_steps)
    progress = _progress(step, warmup_steps, max_steps)
    return _above_floor(0.5 * (1.0 + math.cos(math.pi * progress)), config)


def linear(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Warm-up, then a straight fall: f(p) = 1 - p."""
    warmup_steps = _warmup_steps(config, max_steps)
    if step <= warmup_steps:
        return _rise(step, warmup_steps)
    return _above_floor(1.0 - _progress(step, warmup_steps, max_steps), config)


def polynomial(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Warm-up, then a power of the remaining share: f(p) = (1 - p)^power; linear for a power of 1."""
    warmup_steps = _warmup_steps(config, max_steps)
    if step <= warmup_steps:
        return _rise(step, warmup_steps)
    power = DEFAULT_POWER if config.power is None else config.power
    return _above_floor((1.0 - _progress(step, warmup_steps, max_steps)) ** power, config)


def inverse_sqrt(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Warm-up, then f = sqrt(S / (S + steps since the peak)) with S the warm-up's steps (10,000 without one).

    The rate of "Attention Is All You Need" (Vaswani et al. 2017) and of Adafactor; it does not know the run's end.
    """
    warmup_steps = _warmup_steps(config, max_steps)
    if step <= warmup_steps:
        return _rise(step, warmup_steps)
    scale = warmup_steps or INVERSE_SQRT_STEPS
    return _above_floor(math.sqrt(scale / (scale + min(step, max_steps + 1) - 1 - warmup_steps)), config)


def warmup_stable_decay(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Warm-up, the peak, then a fall over the last `warmdown_steps`, of which the share p lies behind.

    f(p) by warmdown_shape: linear 1 - p, 1-sqrt 1 - sqrt(p) (Haegele et al. 2024), cosine (1 + cos(pi p)) / 2.
    When both do not fit into the run, each is shortened in proportion.
    """
    warmup_steps, warmdown_steps = config.warmup_steps, config.warmdown_steps
    both = warmup_steps + warmdown_steps
    if both > max_steps:
        warmup_steps = max_steps * warmup_steps // both
        warmdown_steps = max_steps - warmup_steps if warmdown_steps else 0
    warmup_steps = min(warmup_steps, max_steps - 1)  # at least one step is at the peak
    if step <= warmup_steps:
        return _rise(step, warmup_steps)
    remaining_steps = max(max_steps - step + 1, 0)
    if remaining_steps >= warmdown_steps:
        return 1.0
    return _above_floor(_FALLS[config.warmdown_shape or "linear"](remaining_steps / warmdown_steps), config)


def _warmup_steps(config: ScheduleConfig, max_steps: int) -> int:
    """The warm-up, shortened so that at least the run's last step is at the peak."""
    return min(config.warmup_steps, max_steps - 1)


def _rise(step: int, warmup_steps: int) -> float:
    return step / (warmup_steps + 1)


def _progress(step: int, warmup_steps: int, max_steps: int) -> float:
    """Share of the decay that lies behind, 0 at the first step after the warm-up, in [0, 1]."""
    return min((step - 1 - warmup_steps) / (max_steps - warmup_steps), 1.0)


def _above_floor(share: float, config: ScheduleConfig) -> float:
    return config.min_lr_fraction + (1.0 - config.min_lr_fraction) * share
