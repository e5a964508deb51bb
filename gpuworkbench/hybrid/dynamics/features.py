"""What a dynamics model sees of a training: about twenty numbers a step, normalised online.

Loss level, spread and slopes over short and long windows, gradient norm and its spread, the optimizer's moments, the
learning rate and its slope, progress, and the phase. All in logarithms, since all are scales.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from gpuworkbench.hybrid.dynamics.trend import Trend
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.running import RunningLevel
from gpuworkbench.hybrid.signals import StepSignals

PHASES = ("warmup", "full", "predict", "correct")
MEANS = ("loss_short", "loss_middle", "loss_long", "lr_short", "lr_long")
DECAYS = (0.8, 0.93, 0.98, 0.8, 0.97)
SCALES = (
    "log loss",
    "loss: short minus middle",
    "loss: middle minus long",
    "loss slope",
    "loss spread",
    "log gradient norm",
    "gradient norm against its level",
    "gradient spread",
    "log spread of m",
    "mean of m over its spread",
    "log mean of v",
    "spread of v over its mean",
    "log lr",
    "lr slope",
)
FEATURES = (*SCALES, "progress", *PHASES)
N_FEATURES = len(FEATURES)
MOMENTS = ("m_mean", "m_std", "v_mean", "v_std")  # not a number where the optimizer keeps none
TINY = 1e-30
CLIP = 5.0


class Features(PlainState):
    """Turns steps into feature vectors. `vector` is raw; `normalized` uses means and deviations seen so far."""

    NAMES = ("means", "count")
    TENSORS = ("mean", "square", "latest")
    CHILDREN = ("trend", "loss", "gradient")

    def __init__(self) -> None:
        self.means = dict.fromkeys(MEANS, 0.0)
        self.count = 0
        self.trend = Trend()
        self.loss, self.gradient = RunningLevel(0.95), RunningLevel(0.95)
        self.mean = torch.zeros(N_FEATURES, dtype=torch.float64)
        self.square = torch.zeros(N_FEATURES, dtype=torch.float64)
        self.latest = torch.zeros(N_FEATURES, dtype=torch.float64)  # the raw features of the last step

    def observe(self, signals: StepSignals) -> np.ndarray:
        """Take a true step with finite numbers; its raw features (N_FEATURES,), float64."""
        log_loss, log_norm, log_lr = (log(value) for value in (signals.loss, signals.grad_norm, signals.lr))
        self.count += 1
        values = (log_loss, log_loss, log_loss, log_lr, log_lr)
        for name, decay, value in zip(MEANS, DECAYS, values, strict=True):
            keep = min(decay, 1.0 - 1.0 / self.count)
            self.means[name] = keep * self.means[name] + (1.0 - keep) * value
        self.trend.push(log_loss)
        self.loss.push(log_loss)
        self.gradient.push(log_norm)
        known: dict[str, Any] = {name: 0.0 for name in MOMENTS if math.isnan(getattr(signals, name))}
        signals = signals._replace(**known)
        vector = np.asarray(self._scales(signals, log_norm, log_lr), dtype=np.float64)
        self.latest.numpy()[:] = vector
        weight = 1.0 / self.count
        mean, square = self.mean.numpy(), self.square.numpy()
        mean += weight * (vector - mean)
        square += weight * (vector * vector - square)
        return vector

    def _scales(self, signals: StepSignals, log_norm: float, log_lr: float) -> list[float]:
        means = self.means
        scales = [
            means["loss_short"],
            means["loss_short"] - means["loss_middle"],
            means["loss_middle"] - means["loss_long"],
            self.trend.slope,
            log(self.loss.sd, 1e-6),
            log_norm,
            log_norm - self.gradient.mean,
            log(self.gradient.sd, 1e-3),
            log(signals.m_std),
            signals.m_mean / max(signals.m_std, TINY),
            log(signals.v_mean),
            log(signals.v_std / max(signals.v_mean, TINY), 1e-6),
            log_lr,
            means["lr_short"] - means["lr_long"],
        ]
        phases = [1.0 if signals.phase == phase else 0.0 for phase in PHASES]
        return [*scales, signals.step / max(signals.max_steps, 1), *phases]

    def normalized(self, vectors: np.ndarray) -> np.ndarray:
        """(..., N_FEATURES): scales as deviations from what was seen so far, clipped; the rest as it is."""
        mean, square = self.mean.numpy(), self.square.numpy()
        sd = np.sqrt(np.maximum(square - mean * mean, 0.0))
        n = len(SCALES)
        result = np.array(vectors, dtype=np.float64)
        result[..., :n] = (result[..., :n] - mean[:n]) / np.maximum(sd[:n], 1e-6 + 1e-6 * np.abs(mean[:n]))
        result[..., n] = 2.0 * result[..., n] - 1.0
        return np.clip(result, -CLIP, CLIP)


def log(value: float, floor: float = TINY) -> float:
    """Logarithm of a scale; 0 and what is below `floor` count as `floor`."""
    return math.log(max(value, floor))
