"""Which predictor, which horizon, or none: a contextual bandit that learns it from what jumps brought per cost.

LinUCB with one linear model an arm (Li, Chu, Langford, Schapire 2010, A contextual-bandit approach to personalized
news article recommendation, algorithm 1). OFF is an arm whose benefit is known to be 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch

from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.running import RunningLevel

OFF = "off"
CONTEXT = ("bias", "progress", "confidence", "cosine", "loss_slope", "log_lr")
ALPHA = 0.7  # width of the confidence bound in deviations of the reward
MIN_PULLS = 6  # rewards, over all arms, before prediction may be switched off
RIDGE = 1.0
DECAY = 0.98  # of old evidence, a decision: what pays early in a training need not pay late
MAX_RETRY_AFTER = 10_000
RETRY_WINS = 3  # in a row
AFTER_RETRY = 0.2  # what the evidence that switched it off still counts
RETRY_AFTER = 10  # decisions until a switched-off bandit tries once more; doubled each time that this did not pay


class Arm(NamedTuple):
    """A predictor and the horizon it is asked for."""

    predictor: str
    horizon: int

    @property
    def name(self) -> str:
        """As events and screens show it."""
        return self.predictor if self.predictor == OFF else f"{self.predictor} x{self.horizon}"


class Choice(NamedTuple):
    """A decision. `switched`: prediction was switched off or on by it, for `reason`."""

    arm: Arm
    reason: str
    switched: bool = False


OFF_ARM = Arm(OFF, 0)


class LinUcb(PlainState):
    """Chooses among `arms`. Rewards are drops of log-loss per cost beyond what true steps bring for the same cost, so
    0 means that a jump is worth exactly the training it displaces; they are divided by their running deviation."""

    NAMES = ("pulls", "waits", "retry_after", "wins", "is_off", "total", "count")
    TENSORS = ("grams", "sums")
    CHILDREN = ("scale",)

    def __init__(self, arms: Sequence[Arm], alpha: float = ALPHA) -> None:
        if not arms:
            raise ValueError("a bandit needs an arm besides off")
        self.arms = tuple(arms)
        self.alpha = alpha
        size = len(CONTEXT)
        self.grams = (RIDGE * torch.eye(size, dtype=torch.float64)).repeat(len(arms), 1, 1)
        self.sums = torch.zeros(len(arms), size, dtype=torch.float64)
        self.scale = RunningLevel(0.95, clip=10.0)
        self.pulls = [0] * len(arms)
        self.waits, self.retry_after = 0, RETRY_AFTER
        self.wins, self.is_off = 0, False
        self.total, self.count = 0.0, 0

    @property
    def mean_reward(self) -> float | None:
        """The measured benefit so far, per cost; None before the first."""
        return self.total / self.count if self.count else None

    def expected(self, contexts: Sequence[float] | Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
        """Estimate and width (1 deviation) of each arm's scaled reward in its context, or in the one given."""
        x = np.broadcast_to(np.asarray(contexts, dtype=np.float64), (len(self.arms), len(CONTEXT)))
        solved = np.linalg.solve(self.grams.numpy(), x[..., None])[..., 0]
        estimates = (solved * self.sums.numpy()).sum(-1)
        widths = np.sqrt(np.maximum((solved * x).sum(-1), 0.0))
        return estimates.tolist(), widths.tolist()

    def choose(
        self, contexts: Sequence[float] | Sequence[Sequence[float]], open_to: Collection[str] | None = None
    ) -> Choice:
        """The arm with the largest upper bound, or OFF: its measured benefit is not above 0.

        `open_to`: the predictors that can jump now (default: all); prediction is switched off only where none would
        pay. `contexts`: one, or one an arm.
        """
        estimates, widths = self.expected(contexts)
        bounds = [e + self.alpha * w for e, w in zip(estimates, widths, strict=True)]
        can = [i for i, arm in enumerate(self.arms) if open_to is None or arm.predictor in open_to]
        if not can:
            return Choice(OFF_ARM, "no predictor can jump now")
        best = max(can, key=lambda i: (bounds[i], -i))
        if self.is_off:
            self.waits += 1
            if self.waits < self.retry_after:
                return Choice(OFF_ARM, "prediction is off: it did not pay")
            self.waits = 0
            return Choice(self.arms[best], "tried again after a while without predictions")
        untried = [i for i in can if self.pulls[i] == 0]
        if untried:
            return Choice(self.arms[untried[0]], "not tried yet")
        if sum(self.pulls) >= MIN_PULLS and bounds[best] <= 0.0:
            if max(bounds) <= 0.0:
                return self._switch_off(max(estimates))
            return Choice(OFF_ARM, "what can jump now did not pay")
        return Choice(self.arms[best], f"expected benefit {estimates[best]:+.2f} +- {widths[best]:.2f}")

    def reward(self, arm: Arm, context: Sequence[float], value: float) -> Choice | None:
        """A jump's measured reward (see the class). Returns a Choice when prediction is switched on again or off."""
        if arm not in self.arms or not math.isfinite(value):
            return None
        self.total += value
        self.count += 1
        deviation = math.sqrt(self.scale.variance + self.scale.mean**2)
        self.scale.push(value)
        scaled = value / max(deviation or abs(value), 1e-12)
        scaled = max(-5.0, min(5.0, scaled))
        index = self.arms.index(arm)
        x = np.asarray(context, dtype=np.float64)
        self._fade(DECAY)
        self.grams.numpy()[index] += np.outer(x, x)
        self.sums.numpy()[index] += scaled * x
        self.pulls[index] += 1
        return self._after_retry(arm, value) if self.is_off else self._review()

    def _fade(self, keep: float) -> None:
        """Old evidence counts `keep` times as much; the prior stays."""
        grams, sums = self.grams.numpy(), self.sums.numpy()
        grams *= keep
        grams += (1.0 - keep) * RIDGE * np.eye(len(CONTEXT))
        sums *= keep

    def _review(self) -> Choice | None:
        """Whether all that was measured says that prediction does not pay, whatever the bounds still hope for."""
        tried = sum(self.pulls)
        if tried < max(MIN_PULLS, 2 * len(self.arms)) or self.total > 0.0:
            return None
        best = max(self._means())
        return self._switch_off(best) if best <= 0.0 else None

    def _means(self) -> list[float]:
        """Each arm's mean scaled reward, shrunk to 0 while it is little known: its estimate without a context."""
        bias = self.grams[:, 0, 0]
        return (self.sums[:, 0] / bias).tolist()

    def _switch_off(self, best: float) -> Choice:
        self.is_off, self.waits = True, 0
        mean = self.mean_reward or 0.0
        measured = f"measured benefit {mean:+.3g} per step's cost over {self.count} jumps"
        reason = f"{measured}, best arm {best:+.2f}: not above 0"
        if mean > 0.0:
            reason = f"{measured}, but now the best arm is expected to bring {best:+.2f}: not above 0"
        return Choice(OFF_ARM, reason, switched=True)

    def _after_retry(self, arm: Arm, value: float) -> Choice | None:
        self.wins = self.wins + 1 if value > 0.0 else 0
        if not self.wins:
            self.retry_after = min(2 * self.retry_after, MAX_RETRY_AFTER)
            return None
        self.waits = self.retry_after  # once more at once: one reward is noise
        if self.wins < RETRY_WINS:
            return None
        self._fade(AFTER_RETRY)
        self.is_off, self.retry_after, self.wins, self.total, self.count = False, RETRY_AFTER, 0, 0.0, 0
        return Choice(arm, f"{arm.name} paid {RETRY_WINS} times when tried again ({value:+.3g})", switched=True)


def advantage(drop: float, cost: float, full_rate: float) -> float:
    """The reward of a jump: its drop of log-loss minus what `cost` of true steps would have brought (`full_rate` a
    step), per step's cost. A jump costs probes and copies, whether it is accepted or undone."""
    return (drop - full_rate * cost) / max(cost, 1e-9)


def context_of(
    progress: float, confidence: float | None, cosine: float | None, loss_slope: float, log_lr: float
) -> tuple[float, ...]:
    """Numbers of about -1..1 that a decision is made from, in the order of CONTEXT."""
    return (
        1.0,
        2.0 * progress - 1.0,
        2.0 * (0.5 if confidence is None else confidence) - 1.0,
        0.0 if cosine is None else cosine,
        max(-1.0, min(1.0, loss_slope)),
        max(-1.0, min(1.0, log_lr)),
    )
