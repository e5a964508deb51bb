"""One jump: probe, move the weights, probe again, and keep or undo it bit for bit."""

from __future__ import annotations

import math
import time

from gpuworkbench.events.schema import Prediction
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.candidates import Candidates
from gpuworkbench.hybrid.components import NoAdvice, Outcome
from gpuworkbench.hybrid.context import HybridContext
from gpuworkbench.hybrid.controller import Jump
from gpuworkbench.hybrid.probe import Probe, ProbeLoss, is_accepted
from gpuworkbench.hybrid.undo import JumpUndo


class Jumper:
    """Makes the jumps of one run, with whichever predictor is chosen."""

    def __init__(
        self,
        context: HybridContext,
        *,
        body: Body,
        candidates: Candidates,
        residuals: NoAdvice,
        probe: Probe,
        undo: JumpUndo,
    ) -> None:
        """`residuals` corrects proposals by what earlier ones missed, where it is on."""
        self.context = context
        self.body = body
        self.candidates = candidates
        self.residuals = residuals
        self.probe = probe
        self.undo = undo

    def jump(
        self,
        jump: Jump,
        confidence: float | None,
        predicted_loss: float | None,
    ) -> Outcome:
        """Returns what became of it. No decision of exact mode reads the duration."""
        started_s, step = time.perf_counter(), self.context.step()
        self._tell_strategies(jump.virtual_steps)
        before = self.probe.loss()
        horizon, after, probes = self._move(jump.virtual_steps, before, step)
        accepted = is_accepted(self.candidates.chosen.spec.rule, before, after)
        delta_norm = self.body.moved()
        if not accepted:
            self.undo.restore_weights()
        self.candidates.judged(accepted=accepted)
        for remaining in range(jump.virtual_steps - 1, 0, -1):
            self._tell_strategies(remaining)
        self.context.emit(
            Prediction,
            step=step,
            predictor=self.candidates.chosen.name,
            exploration=jump.exploration,
            horizon_steps=horizon,
            confidence=confidence,
            predicted_loss=predicted_loss,
            probe_before=before.mean,
            probe_after=after.mean,
            accepted=accepted,
            delta_norm=delta_norm,
            cosine=self.residuals.cosine(),
            duration_s=(seconds := time.perf_counter() - started_s),
        )
        return Outcome(step, horizon, accepted, before.mean, after.mean, 1 + probes, seconds)

    def _move(self, longest: int, before: ProbeLoss, step: int) -> tuple[int, ProbeLoss, int]:
        """Move the weights as far as it goes; returns how many virtual steps that stands for, the probe there, and
        how often the probe was asked."""
        if not self.candidates.chosen.spec.doubles:
            return longest, self._try(longest, step), 1
        best, horizon, trial, probes = before, 0, 1, 0
        while True:
            after = self._try(trial, step)
            probes += 1
            if not (math.isfinite(after.mean) and after.mean < best.mean):
                break
            best, horizon = after, trial
            if trial == longest:
                return horizon, best, probes
            trial = min(2 * trial, longest)
            self.undo.restore_weights()
        if horizon == 0:
            return trial, after, probes
        self.undo.restore_weights()
        self._propose(horizon, step)
        return horizon, best, probes

    def _try(self, horizon: int, step: int) -> ProbeLoss:
        self._propose(horizon, step)
        return self.probe.loss()

    def _propose(self, horizon: int, step: int) -> None:
        self.body.moved()  # counts from here
        chosen = self.candidates.chosen
        with self.body.corrected_by(self.residuals.correction(chosen.name, horizon)):
            chosen.predictor.propose(horizon, step)

    def _tell_strategies(self, remaining: int) -> None:
        """A virtual step begins, `remaining` of them before the next true one. A jump is worked out in the first,
        while memory is at its lowest; the others are time to bring state back."""
        for strategy in self.context.strategies:
            strategy.virtual_step(remaining)
