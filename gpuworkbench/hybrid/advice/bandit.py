"""The bandit beside a training: which predictor jumps next and how far, or none, by what jumps brought so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.predictors import predictor_names, spec_of
from gpuworkbench.hybrid.bandit import OFF, Arm, LinUcb, advantage, context_of
from gpuworkbench.hybrid.benefit import BenefitMeter
from gpuworkbench.hybrid.components import NoAdvice, Outcome, Plan
from gpuworkbench.hybrid.cost import Costs
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.signals import StepSignals
from gpuworkbench.parts import Part


def arms_of(config: HybridConfig) -> tuple[Arm, ...]:
    """Each predictor at the horizons that it is offered at. Arms are tried in this order: first each predictor once."""
    arms = [(rank, arm) for name in predictor_names(config) for rank, arm in enumerate(_arms_of(name, config))]
    return tuple(arm for _, arm in sorted(arms, key=lambda pair: pair[0]))


def _arms_of(predictor: str, config: HybridConfig) -> Sequence[Arm]:
    """At its longest horizon, and where it is free to choose at two shorter ones."""
    if spec_of(predictor).averages:
        return [Arm(predictor, config.full_steps)]
    longest = config.max_predict_steps
    return [Arm(predictor, horizon) for horizon in sorted({longest, max(1, longest // 2), max(1, longest // 4)})]


class BanditAdvice(PlainState, NoAdvice):
    """A jump's reward comes when its window of true steps is over (or at once, when the probe undoes it)."""

    NAMES = (
        "chosen",
        "context",
        "played",
        "played_context",
        "planned_step",
        "cost",
        "lr",
        "top_lr",
        "progress",
        "waiting",
        "told",
    )
    CHILDREN = ("bandit", "meter", "costs")

    def __init__(self, arms: tuple[Arm, ...], costs: Costs) -> None:
        self.arms, self.costs = arms, costs
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.bandit, self.meter = LinUcb(self.arms), BenefitMeter()
        self.chosen: str = OFF  # name of the arm that the plan of `planned_step` is of
        self.context: list[float] = []
        self.played, self.played_context = OFF, [0.0]  # of the jump that waits for its reward
        self.planned_step, self.cost = -1, 0.0
        self.lr, self.top_lr, self.progress = 0.0, 0.0, 0.0
        self.waiting = False  # for the window of a jump that stands
        self.told: list[Any] = []  # news
        self._last_s: float | None = None

    def after_step(self, step: int, controller: object) -> None:
        """Fast mode: what a true step costs, from one to the next."""
        if self.costs.is_exact:
            return
        now = time.perf_counter()
        if self._last_s is not None:
            self.costs.note("step", now - self._last_s)
        self._last_s = now

    def observe(self, signals: StepSignals) -> None:
        """A true step; perhaps the last of the window that decides what the last jump was worth."""
        self.lr, self.top_lr = signals.lr, max(self.top_lr, signals.lr)
        self.progress = signals.step / max(signals.max_steps, 1)
        gain = self.meter.push(signals.loss)
        if gain is not None and self.waiting:
            self._reward(gain)

    def plan(self, step: int, confidences: Mapping[str, float | None]) -> Plan:
        """Choose, once a step. Where no predictor may predict the machine has the word, unless prediction is off."""
        if not confidences:
            return Plan(self._off()) if self.bandit.is_off else Plan()
        if step != self.planned_step:
            contexts = [self._context(confidences.get(arm.predictor)) for arm in self.arms]
            choice = self.bandit.choose(contexts, confidences)
            self.chosen, self.planned_step = choice.arm.name, step
            self.context = contexts[self.arms.index(choice.arm)] if choice.arm in self.arms else contexts[0]
            if choice.switched:
                self.told.append(["prediction_off", f"prediction is switched off: {choice.reason}"])
        arm = self._arm(self.chosen)
        if arm is not None:
            return Plan(horizon=arm.horizon, predictor=arm.predictor)
        return Plan(self._off() if self.bandit.is_off else "no prediction: what can jump now did not pay")

    def phases_off(self) -> int:
        """Up to its next try, once the last jump has its reward."""
        bandit = self.bandit
        return bandit.retry_after - bandit.waits if bandit.is_off and not self.waiting else 0

    def _off(self) -> str:
        mean = self.bandit.mean_reward or 0.0
        if mean > 0.0:  # of all jumps; lately it was not
            return f"prediction is off: no benefit is expected now (measured so far: {mean:+.3g})"
        return f"prediction is off: measured benefit {mean:+.3g} is not above 0"

    def _context(self, confidence: float | None) -> list[float]:
        trend = self.meter.trend
        slope = trend.slope / max(abs(trend.slope) * 20.0, 1e-9) if trend.count > 40 else 0.0
        log_lr = math.log10(max(self.lr, 1e-30) / self.top_lr) if self.top_lr > 0.0 else 0.0
        return list(context_of(self.progress, confidence, None, slope, log_lr))

    def judged(self, outcome: Outcome) -> None:
        """One jump of the prediction: its cost counts whether it stands or not."""
        if self.waiting and (gain := self.meter.cut()) is not None:
            self._reward(gain)
        self.waiting = False  # too few steps since the last one: the next window judges both
        self.played, self.played_context = self.chosen, list(self.context)
        self._last_s = None  # the time to the next step holds the jump
        self.cost += self.costs.of_jump(outcome.probes, outcome.seconds)
        if outcome.accepted:
            self.meter.jumped()
            self.waiting = True
        else:
            self._reward(0.0)

    def undone(self) -> None:
        """True steps showed that the jump was bad."""
        if self.waiting:
            self.meter.undone()
            self._reward(0.0)

    def news(self) -> list[tuple[str, str]]:
        """Prediction switched off or on."""
        found, self.told = self.told, []
        return [(code, message) for code, message in found]

    def _reward(self, gain: float) -> None:
        arm, cost = self._arm(self.played), self.cost
        self.waiting, self.cost = False, 0.0
        if arm is None or not self.played_context:
            return
        change = self.bandit.reward(arm, self.played_context, advantage(gain, cost, self.meter.rate))
        if change is not None:
            code = "prediction_off" if change.arm.predictor == OFF else "prediction_on"
            self.told.append([code, f"prediction is switched {code[11:]}: {change.reason}"])

    def state(self) -> Part:
        """With the names of the arms that it is of."""
        part = super().state()
        return Part(part.tensors, {**part.values, "arms": [arm.name for arm in self.arms]})

    def load(self, part: Part) -> None:
        """Restore; what was learnt of other arms (before a fork) is passed over. Raises CheckpointError."""
        mine = [arm.name for arm in self.arms]
        if part.values.get("arms", mine) == mine:
            super().load(Part(part.tensors, {**part.values, "arms": mine}))
        else:
            self.reset()

    def _arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)
