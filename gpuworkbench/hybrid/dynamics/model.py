"""The dynamics model of a run: trained while it runs, in shadow of it; forecasts its loss, with an uncertainty.

What it forecasts is how far the trend (trend.py) will be off, over AHEAD ticks of STRIDE steps. How much of that is
believed (`gain`) is measured: each tick's forecasts are kept and held against what came. With a gain of 0 it is the
trend alone. It computes where `device` says, on its own numbers, and draws from no generator that the training uses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from gpuworkbench.hybrid.dynamics.features import N_FEATURES, Features
from gpuworkbench.hybrid.dynamics.replay import AHEAD, STRIDE, Replay
from gpuworkbench.hybrid.dynamics.rssm import Rssm, initial_parameters, kl_loss, sample
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.running import RunningLevel
from gpuworkbench.hybrid.signals import StepSignals

BATCH = 8
RECENT = 24  # half of a batch are among so many newest sequences
LR, BETA1, BETA2, EPS = 6e-3, 0.9, 0.99, 1e-8
MAX_GRAD_NORM = 5.0
WARM_SEQUENCES = 8
RECONSTRUCTION, KL = 0.3, 0.1
GAIN_DECAY = 0.98
GAIN_PRIOR = 2.0  # evidence for a gain of 0, in squared scaled forecasts
UPDATE_FLOPS = 1.2e9  # what an update's time is worth on a machine that trains at 100 GFLOP/s: it is all overhead
COST_SHARE = 0.01


class Forecast(NamedTuple):
    """The expected log-loss after some steps, its deviation, and the loss that this is (the median)."""

    log_loss: float
    sd: float
    trend: float  # what the trend alone says

    @property
    def loss(self) -> float:
        """In nats."""
        return math.exp(min(self.log_loss, 50.0))


def update_interval(step_flops: float) -> int:
    """Ticks between two updates so that they cost at most about COST_SHARE of the training; no clock is asked."""
    return min(50, max(1, math.ceil(UPDATE_FLOPS / (COST_SHARE * STRIDE * max(step_flops, 1.0)))))


class Dynamics(PlainState):
    """See the module. `interval` ticks between updates; `seed` of initial weights and draws."""

    NAMES = ("tick_sum", "tick_count", "updates", "sxy", "sxx", "last_loss")
    TENSORS = ("flat", "adam_m", "adam_v", "imagined")
    CHILDREN = ("features", "replay", "miss")

    def __init__(self, seed: int, step_flops: float, device: torch.device | None = None) -> None:
        self.seed = seed
        self.interval = update_interval(step_flops)
        initial = initial_parameters(N_FEATURES, seed)
        self.shapes = {name: tuple(value.shape) for name, value in initial.items()}
        self.sizes = [value.numel() for value in initial.values()]
        self.flat = torch.cat([value.reshape(-1) for value in initial.values()]).to(device)
        self.adam_m, self.adam_v = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.features, self.replay = Features(), Replay()
        self.miss = RunningLevel(0.97)  # of the trend's forecasts one tick ahead
        self.imagined = torch.zeros(AHEAD, AHEAD + 1, dtype=torch.float64)  # of the last ticks: forecasts, 1: made
        self.tick_sum, self.tick_count, self.updates = 0.0, 0, 0
        self.sxy, self.sxx = [0.0] * AHEAD, [0.0] * AHEAD
        self.last_loss: float | None = None

    # What the trainer calls

    def observe(self, signals: StepSignals) -> None:
        """A true step. Every STRIDE steps a tick ends, and every `interval` ticks the model learns."""
        if not (math.isfinite(signals.loss) and signals.loss > 0.0 and math.isfinite(signals.grad_norm)):
            return
        vector = self.features.observe(signals)
        self.tick_sum += math.log(signals.loss)
        self.tick_count += 1
        if self.tick_count < STRIDE:
            return
        level, self.tick_sum, self.tick_count = self.tick_sum / STRIDE, 0.0, 0
        self._judge(level)
        trend = self.features.trend
        anchors = [trend.forecast(STRIDE * k - (STRIDE - 1) / 2.0) for k in range(1, AHEAD + 1)]
        self.replay.push(vector, level, np.asarray(anchors))
        if self.replay.n_sequences() >= WARM_SEQUENCES:
            if self.replay.count % self.interval == 0:
                self.learn()
            self._imagine()

    def forecast(self, steps: int) -> Forecast:
        """The log-loss `steps` true steps from now."""
        trend = self.features.trend.forecast(steps)
        if not self.updates:
            return Forecast(trend, max(self.miss.sd, self.features.loss.sd), trend)
        means, sds = self.misses()
        position = min(steps / STRIDE, float(AHEAD))
        knots = [0.0, *(k + 1.0 for k in range(AHEAD))]
        correction = float(np.interp(position, knots, [0.0, *(g * m for g, m in zip(self.gains, means, strict=True))]))
        return Forecast(trend + correction, float(np.interp(position, knots, [sds[0], *sds])), trend)

    @property
    def gains(self) -> list[float]:
        """Share of each tick's forecast that is believed, 0 to 1: the regression of what came on what was said."""
        return [max(0.0, min(1.0, float(xy) / (xx + GAIN_PRIOR))) for xy, xx in zip(self.sxy, self.sxx, strict=True)]

    @property
    def scale(self) -> float:
        """The deviation of what the trend misses: the unit of the model's forecasts."""
        return max(self.miss.sd, 1e-6)

    def misses(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of what the trend will miss at each of the AHEAD ticks, in log-loss (a mixture)."""
        with torch.no_grad():
            model = self._model(self.flat)
            states = model.imagine(model.filter(self._inputs(self.replay.recent()[None])), AHEAD)
            heads = [model.loss_head(state) for state in states]
        means = torch.stack([mean[:, 0] for mean, _ in heads])  # (AHEAD, E)
        variances = torch.stack([(2.0 * log_sd[:, 0]).exp() for _, log_sd in heads])
        mixture = variances.mean(1) + means.var(1, unbiased=False)
        return (means.mean(1) * self.scale).tolist(), (mixture.sqrt() * self.scale).tolist()

    def latent(self) -> np.ndarray | None:
        """The state now, mean over the members (H + Z,): what learned coefficients are read from; None at the start."""
        if not self.updates:
            return None
        with torch.no_grad():
            state = self._model(self.flat).filter(self._inputs(self.replay.recent()[None]))
            return torch.cat(state, -1).mean((0, 1)).double().cpu().numpy()

    # Learning

    def learn(self) -> float:
        """One Adam step on BATCH sequences: filter, imagine, compare. Returns the loss."""
        n = self.replay.n_sequences()
        seed = (self.seed * 1_000_003 + self.updates) % 2**62
        draws = np.random.Generator(np.random.PCG64(seed))
        recent = draws.integers(0, min(n, RECENT), BATCH // 2)
        back = np.concatenate((recent, draws.integers(0, n, BATCH - BATCH // 2)))
        sequences = self.replay.sequences(back)
        x = self._inputs(sequences.vectors)
        y = torch.from_numpy(sequences.misses / self.scale).float().clamp(-5.0, 5.0).to(x.device)
        with torch.enable_grad():  # the trainer may ask from within no_grad
            flat = self.flat.detach().requires_grad_()
            loss = self._loss(self._model(flat), x, y, torch.Generator().manual_seed(seed))
            (grad,) = torch.autograd.grad(loss, flat)
        self._adam(grad)
        return float(loss.detach())

    def _loss(self, model: Rssm, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Gaussian NLL of the imagined ticks + reconstruction of the seen ones + KL (the negative ELBO, weighted)."""
        state, kls, rebuilt = model.start(x.shape[0]), [], []
        embedded = model.embed(x.transpose(0, 1).reshape(1, -1, x.shape[-1]).expand(len(state.h), -1, -1))
        for tick in embedded.unflatten(1, (x.shape[1], x.shape[0])).unbind(1):
            h = model.advance(state)
            prior, posterior = model.prior(h), model.posterior(h, tick)
            kls.append(kl_loss(posterior, prior))
            state = state._replace(h=h, z=sample(posterior, generator))
            rebuilt.append(torch.cat(state, -1))
        decoded = model.linear("decoder", torch.cat(rebuilt, 1)).unflatten(1, (x.shape[1], x.shape[0]))
        reconstruction = (decoded - x.transpose(0, 1)).square().mean()
        nll = x.new_zeros(())
        for tick_ahead, imagined in enumerate(model.imagine(state, AHEAD)):
            mean, log_sd = model.loss_head(imagined)
            nll = nll + (0.5 * ((y[:, tick_ahead] - mean) / log_sd.exp()).square() + log_sd).mean()
        return nll / AHEAD + RECONSTRUCTION * reconstruction + KL * torch.stack(kls).mean()

    def _adam(self, grad: torch.Tensor) -> None:
        norm = float(grad.norm())
        if not math.isfinite(norm):
            return
        self.updates += 1
        grad = grad * min(1.0, MAX_GRAD_NORM / (norm + 1e-6))
        self.adam_m.mul_(BETA1).add_(grad, alpha=1.0 - BETA1)
        self.adam_v.mul_(BETA2).addcmul_(grad, grad, value=1.0 - BETA2)
        scale = math.sqrt(1.0 - BETA2**self.updates) / (1.0 - BETA1**self.updates)
        self.flat.addcdiv_(self.adam_m, self.adam_v.sqrt().add_(EPS), value=-LR * scale)

    def _model(self, flat: torch.Tensor) -> Rssm:
        pieces = flat.split(self.sizes)
        return Rssm({name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)})

    def _inputs(self, vectors: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.features.normalized(vectors)).float().to(self.flat.device)

    # What its forecasts were worth

    def _imagine(self) -> None:
        """Keep what would be forecast now, scaled, to be judged when it has come."""
        row = self.imagined.numpy()[self.replay.count % AHEAD]
        row[:] = 0.0
        if self.updates:
            row[:AHEAD] = np.asarray(self.misses()[0]) / self.scale
            row[AHEAD] = 1.0

    def _judge(self, level: float) -> None:
        """Hold the forecasts of the last AHEAD ticks for this one against it."""
        anchors = self.replay.anchors.numpy()
        for ahead in range(1, min(AHEAD, self.replay.count) + 1):
            made = self.replay.count - ahead  # tick index of the forecast
            miss = level - float(anchors[made % len(anchors)][ahead - 1])
            if ahead == 1:
                self.miss.push(miss)
            row = self.imagined.numpy()[(made + 1) % AHEAD]
            if row[AHEAD]:
                said, came = float(row[ahead - 1]), max(-5.0, min(5.0, float(miss) / self.scale))
                self.sxy[ahead - 1] = GAIN_DECAY * self.sxy[ahead - 1] + said * came
                self.sxx[ahead - 1] = GAIN_DECAY * self.sxx[ahead - 1] + said * said
