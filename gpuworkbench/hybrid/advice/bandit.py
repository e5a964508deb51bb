"""The bandit beside a training: which horizon the next jump is asked for, or none, by what jumps brought so far."""

from __future__ import annotations

import math
import time
from typing import Any

from gpuworkbench.hybrid.bandit import OFF, Arm, LinUcb, advantage, context_of
from gpuworkbench.hybrid.benefit import BenefitMeter
from gpuworkbench.hybrid.components import NoAdvice, Outcome, Plan
from gpuworkbench.hybrid.cost import Costs
from gpuworkbench.hybrid.plain_state import PlainState
from gpuworkbench.hybrid.signals import StepSignals


def arms_of(predictor: str, longest: int, *, averages: bool) -> tuple[Arm, ...]:
    """The horizons that a predictor is offered at: its longest, and where it is free to choose two shorter ones."""
    horizons = {longest} if averages else {longest, max(1, longest // 2), max(1, longest // 4)}
    return tuple(Arm(predictor, horizon) for horizon in sorted(horizons))


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

    def after_step(self, predictor: object, step: int, controller: object) -> None:
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

    def plan(self, step: int, confidence: float | None) -> Plan:
        """Choose, once a step."""
        if step != self.planned_step:
            spread = max(abs(self.meter.trend.slope) * 20.0, 1e-9)
            slope = self.meter.trend.slope / spread if self.meter.trend.count > 40 else 0.0
            log_lr = math.log10(max(self.lr, 1e-30) / self.top_lr) if self.top_lr > 0.0 else 0.0
            self.context = list(context_of(self.progress, confidence, None, slope, log_lr))
            choice = self.bandit.choose(self.context)
            self.chosen, self.planned_step = choice.arm.name, step
            if choice.switched:
                self.told.append(["prediction_off", f"prediction is switched off: {choice.reason}"])
        arm = self._arm(self.chosen)
        if arm is None:
            mean = self.bandit.mean_reward
            return Plan(f"prediction is off: measured benefit {0.0 if mean is None else mean:+.3g} is not above 0")
        return Plan(horizon=arm.horizon)

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

    def _arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)
