"""Who predicts next: of the predictors that can, and that the confidence gate admits, the bandit's choice."""

from __future__ import annotations

from gpuworkbench.hybrid.candidates import Candidate, Candidates
from gpuworkbench.hybrid.components import NoAdvice, Plan
from gpuworkbench.hybrid.controller import FULL, PhaseController

LOOKS_AHEAD = 2  # full phases of looking before a jump; an averaging predictor needs the last one alone


class Selection:
    """Asked where a prediction may begin. `dynamics` and `bandit` are null objects while they are off."""

    def __init__(self, candidates: Candidates, dynamics: NoAdvice, bandit: NoAdvice) -> None:
        self.candidates = candidates
        self.dynamics = dynamics
        self.bandit = bandit

    def confidence(self, candidate: Candidate | None = None) -> float | None:
        """Probability that a jump of it (default: of the chosen one) is accepted; None: unknown. The dynamics model
        knows the state of training and makes no difference between predictors."""
        known = self.dynamics.confidence(self.candidates.config.max_predict_steps)
        return (candidate or self.candidates.chosen).acceptance.rate() if known is None else known

    def plan(self, controller: PhaseController, step: int, max_steps: int) -> Plan:
        """Choose one and tell the machine of which kind it is; how far it should go, or what stands against any."""
        if self.bandit.phases_off() > 1:  # they rest, and their readiness says nothing
            return self.bandit.plan(step, {candidate.name: None for candidate in self.candidates})
        reasons = {candidate: candidate.blocked(step, max_steps) for candidate in self.candidates}
        can = [candidate for candidate, reason in reasons.items() if not reason]
        if not can:
            return Plan("; ".join(dict.fromkeys(reasons.values())))
        confidences = {c.name: self.confidence(c) for c in can if self._is_admitted(c, controller)}
        plan = self.bandit.plan(step, confidences)
        fallback = self.candidates.chosen if self.candidates.chosen in can else can[0]
        self.candidates.choose(plan.predictor or fallback.name)
        controller.averages = self.candidates.chosen.spec.averages
        return plan

    def rests(self, candidate: Candidate, controller: PhaseController, step: int, max_steps: int) -> bool:
        """Whether it cannot jump before long, and so need not watch: its window is over, its gate has closed for good
        (only jumps could open it again), or the bandit has switched prediction off and does not try again yet."""
        if controller.phase != FULL:
            return False  # a jump may still be judged
        if step / max_steps > candidate.spec.window[1]:
            return True
        is_learnt = self.dynamics.confidence(self.candidates.config.max_predict_steps) is not None
        if not is_learnt and not controller.opens(candidate.acceptance.rate(), candidate.predictions):
            return True
        return self.bandit.phases_off() > (1 if candidate.spec.averages else LOOKS_AHEAD)

    def observe(self, controller: PhaseController, step: int, max_steps: int) -> None:
        """A true step was taken, or a phase begins: show the weights to those that may jump."""
        for candidate in self.candidates:
            is_resting = self.rests(candidate, controller, step, max_steps)
            candidate.observe(step, controller.until_jump(), rests=is_resting)

    def _is_admitted(self, candidate: Candidate, controller: PhaseController) -> bool:
        confidence, averages = self.confidence(candidate), candidate.spec.averages
        return not candidate.rests and controller.admits(confidence, candidate.predictions, averages=averages)
