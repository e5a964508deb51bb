"""The hybrid trainer: true steps, and between them jumps that are judged.

The training loop calls it around each true step. All decisions are functions of true steps' losses and probe losses
in order, and of nothing else, so that a resumed run makes the same ones. It reads scalars from the card only where
something is to be decided.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gpuworkbench.errors import CheckpointError
from gpuworkbench.events.schema import ConfigChanged, Correction, Divergence, MicroCorrection
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.hybrid.advice.make import make_advice
from gpuworkbench.hybrid.advice.monitor import CUT, RECOVERY_STEPS, SHORT_STEPS
from gpuworkbench.hybrid.advice.shadow import ShadowAdvice
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.candidates import Candidates
from gpuworkbench.hybrid.components import NoAdvice, Plan
from gpuworkbench.hybrid.context import BadStep, HybridContext
from gpuworkbench.hybrid.controller import CORRECT, FULL, PREDICT, WARMUP, Jump, Move, PhaseController, Situation
from gpuworkbench.hybrid.damping import damp_moments
from gpuworkbench.hybrid.divergence import Verdict
from gpuworkbench.hybrid.jump import Jumper
from gpuworkbench.hybrid.loss_trend import LossTrend
from gpuworkbench.hybrid.probe import Probe
from gpuworkbench.hybrid.selection import Selection
from gpuworkbench.hybrid.signals import StepSignals, moment_statistics
from gpuworkbench.hybrid.undo import NOT_UNDOABLE, JumpUndo
from gpuworkbench.hybrid.watch import Watch
from gpuworkbench.parts import Part, Stateful


class HybridTrainer:
    """Phases, jumps and their judgement for one run.

    `dynamics`, `monitor`, `residuals`, `corrector`, `bandit` and `tuner` advise it; each is a null object while off.
    """

    version = 1

    def __init__(self, context: HybridContext) -> None:
        hybrid = context.config.hybrid
        self.context = context
        self.config = hybrid
        self.body = Body(context.model, context.weights, context.device, context.host)
        self.candidates = Candidates(self.body, hybrid, context.config.train.seed)
        self.controller = PhaseController(hybrid, averages=self.candidates.chosen.spec.averages)
        self.undo = JumpUndo(self.body, context.optimizer, context.undo_on_disk)
        self.probe = Probe(context.forward, context.model, context.probe_sequences)
        self.trend = LossTrend()
        self.watch: Watch | None = None  # the jump that true steps are still to judge
        self.owes_damping = False
        self.stop_reason = ""  # why the run must end here, with a checkpoint
        advice = make_advice(
            context.config,
            n_params=self.body.n_elements,
            weight_bytes=sum(p.nbytes for p in self.body.parameters.values()),
            device=context.device,
            predict=self._uncorrected_loss,
        )
        self.dynamics, self.monitor, self.corrector = advice.dynamics, advice.monitor, advice.corrector
        self.bandit, self.tuner = advice.bandit, advice.tuner
        self.residuals = ShadowAdvice(self.body, self.candidates, advice.corrector) if hybrid.corrector else NoAdvice()
        self.jumper = Jumper(
            context,
            body=self.body,
            candidates=self.candidates,
            residuals=self.residuals,
            probe=self.probe,
            undo=self.undo,
        )
        self.selection = Selection(self.candidates, self.dynamics, self.bandit)
        for candidate in self.candidates:
            candidate.predictor.advised_by(self.dynamics)
        context.phases.current = self.controller.phase

    # What the training loop calls

    def announcement(self, remaining_steps: int) -> tuple[str, int]:
        """Why an attempt begins in the phase it begins in, and the true steps planned in it."""
        reason = "the hybrid trainer begins" if self.context.step() == 0 else "as the checkpoint left it"
        return reason, min(self.controller.planned(), remaining_steps)

    def before_step(self) -> BadStep | None:
        """Decide and jump, until a true step is next; returns a non-finite step that came to light."""
        self._tell_news()
        while self.controller.is_due() or self.monitor.has_verdicts:
            bad = self.context.flush()
            if bad is not None:
                return bad
            forced = self._act(self.monitor.verdicts())
            # A jump is judged when its true steps are done, or are cut short here.
            undone = self._judge() if forced or self.controller.is_due() else ""
            action = self.controller.next(self._situation(undone or forced))
            if action is None:
                return None
            if isinstance(action, Move):
                self._enter(action)
            else:
                self._jump(action)
            self._tell_news()
        return None

    def skips(self, loss: Tensor, grad_norm: Tensor) -> bool:
        """Whether the coming update must be left out. On a card only where the scalars of each step are read anyway;
        never where backward has made it already."""
        config = self.context.config
        reads = self.context.device.type == "cpu" or config.steps_between_reads == 1
        if not (reads and self.monitor.reads_each_step) or config.memory.optimizer_in_backward:
            return False
        return self.monitor.skips(self.context.step() + 1, float(loss), float(grad_norm))

    def clip_norm(self, configured: float) -> float:
        """The norm that the coming gradients are clipped to."""
        return self.tuner.clip_norm(configured)

    def before_update(self) -> None:
        """The optimizer's state is where it computes, and a true step begins."""
        if self.owes_damping:
            damp_moments(self.context.optimizer, self.config.moment_damping)
            self.owes_damping = False

    def after_step(self) -> None:
        """A true step was taken; its scalars may still be on the card."""
        self.controller.stepped()
        self._observe_weights()
        for component in (self.residuals, self.bandit):
            component.after_step(self.context.step(), self.controller)

    def observe(self, signals: StepSignals) -> None:
        """The scalars of a true step, in order."""
        self.trend.observe(signals.loss)
        if self.watch is not None and signals.phase in (PREDICT, CORRECT):
            self.watch.losses.append(signals.loss)
        for component in self._components():
            component.observe(signals)

    def lr_factor(self) -> float:
        """Multiple of the scheduled learning rate of the next true step."""
        return self.controller.correct_lr_factor() * self.tuner.lr_factor() * self.monitor.lr_factor()

    def moments(self) -> Tensor | None:
        """Statistics of the optimizer's moments, (4,) on the device, where a component reads them."""
        if not any(component.wants_moments for component in self._components()):
            return None
        return moment_statistics(self.context.optimizer, self.context.device)

    def survives(self, bad: BadStep) -> bool:
        """Whether a non-finite step did no harm: its update was left out, or it was a jump's fault and is undone, with
        weights and optimizer as before the jump."""
        if self.monitor.was_skipped(bad.step):
            return True
        if self.undo.step is None:
            return False
        went_back_to = self.undo.step
        self._roll_back()
        self._tell_judgement(bad.value, rolled_back=True)
        self.context.emit(
            Divergence,
            step=bad.step,
            level="critical",
            signal=f"nonfinite {bad.what}",
            value=bad.value,
            threshold=None,
            action=f"rolled back to the weights and optimizer before the jump at step {went_back_to}",
        )
        self.watch = None
        self.candidates.forget()
        action = self.controller.next(self._situation(f"{bad.what} is {bad.value} at step {bad.step}"))
        assert isinstance(action, Move)
        self._enter(action)
        return True

    # Decisions

    def _situation(self, diverged: str) -> Situation:
        step = self.context.step()
        max_steps = self.context.max_steps
        plan = self.selection.plan(self.controller, step, max_steps) if self.controller.chooses() else Plan()
        chosen = self.candidates.chosen
        return Situation(
            confidence=self.selection.confidence(),
            remaining_steps=max_steps - step,
            blocked=plan.blocked,
            diverged=diverged,
            horizon_factor=self.monitor.horizon_factor(),
            horizon=plan.horizon,
            predictions=chosen.predictions,
            by=self.candidates.by(),
        )

    def _enter(self, move: Move) -> None:
        step = self.context.step()
        if move.to == PREDICT:
            self.candidates.chosen.predictions += 1
            if not self.undo.is_made(step, self.context.emit):  # before a strategy takes the optimizer's state away
                move = self._refused(NOT_UNDOABLE)
        if move.to == FULL:
            self.watch = None
            self.undo.drop()
            self.residuals.phase_began()
        self.context.phases.change(step, move.to, move.reason, move.planned_steps)
        self._observe_weights()

    def _refused(self, reason: str) -> Move:
        """The move where a jump cannot be made; a prediction without one was none."""
        if not self.controller.has_jumped():
            self.candidates.chosen.predictions -= 1
        return self.controller.refused(reason)

    def _observe_weights(self) -> None:
        if self.controller.phase != WARMUP:
            self.selection.observe(self.controller, self.context.step(), self.context.max_steps)

    def _jump(self, jump: Jump) -> None:
        """Make the jump, keep or undo it, and tell; none where the predictor had to forget what it saw, or where it
        could not be undone."""
        reason = self.candidates.chosen.predictor.ready()
        if not reason and not self.undo.is_made(self.context.step(), self.context.emit):
            reason = NOT_UNDOABLE
        if reason:
            self._enter(self._refused(reason))
            return
        confidence = self.selection.confidence()
        limit = self.trend.limit(self.config.divergence_threshold)
        predicted = self._predicted_loss(jump.virtual_steps)
        outcome = self.jumper.jump(jump, confidence, predicted)
        accepted = outcome.accepted
        for component in self._components():
            component.judged(outcome)
        if accepted:
            self.watch = Watch(limit if math.isfinite(limit) else None, predicted)
            self.owes_damping = self.config.moment_damping < 1
        else:
            self.undo.drop()
        self.controller.jumped(accepted=accepted)
        if accepted:
            self._observe_weights()  # the step between two jumps begins here

    def _uncorrected_loss(self, steps: int) -> float | None:
        known = self.dynamics.predicted_loss(steps)
        return self.trend.predicted(steps) if known is None else known

    def _predicted_loss(self, steps: int) -> float | None:
        predicted = self._uncorrected_loss(steps)
        return None if predicted is None else self.corrector.corrected_loss(predicted, steps)

    def _judge(self) -> str:
        """Compare the true steps since the last jump with what went before it; returns why it was undone, or ""."""
        watch = self.watch
        if watch is None or not watch.losses:
            return ""
        actual = watch.mean_loss()
        rolled_back = self.undo.step is not None and watch.limit is not None and actual > watch.limit
        self._tell_judgement(actual, rolled_back=rolled_back)
        if math.isfinite(actual):
            self.monitor.predicted(watch.predicted, actual)
        self.watch = None
        if not rolled_back:
            return ""
        self._roll_back()
        return f"loss {actual:.4g} after the jump is above {watch.limit:.4g}; rolled back"

    def _tell_judgement(self, actual: float, *, rolled_back: bool) -> None:
        kind = MicroCorrection if self.controller.phase == PREDICT else Correction
        self.context.emit(
            kind,
            step=self.context.step(),
            actual_loss=actual,
            predicted_loss=self.watch.predicted if self.watch is not None else None,
            residual_norm=self.residuals.residual_norm(),
            rolled_back=rolled_back,
        )

    def _roll_back(self) -> None:
        """Weights and optimizer as before the last jump. Steps and tokens since then stay spent."""
        self.undo.restore()
        self.undo.drop()
        self.owes_damping = False
        self.candidates.rolled_back(stood=self.controller.has_jumped())
        for component in self._components():
            component.undone()

    def _act(self, verdicts: list[Verdict]) -> str:
        """Do what verdicts ask for and tell what was done; returns why a full phase is forced, or ""."""
        forced = ""
        for verdict in verdicts:
            done = [text for action in verdict.actions if (text := self._do(action))]
            self.monitor.acted(verdict.actions)
            if "force_full" in verdict.actions and self.controller.phase != WARMUP:
                forced = f"{verdict.signal} ({verdict.level.name})"
                done.append("a full phase is forced")
            self.context.emit(
                Divergence,
                step=self.context.step(),
                level=verdict.level.name,
                signal=verdict.signal,
                value=verdict.value,
                threshold=verdict.threshold,
                action="; ".join(done) or "none",
            )
        return forced

    def _do(self, action: str) -> str:
        """One action of a verdict; returns what was done, in words."""
        if action == "rollback" and self.undo.step is not None:
            before = self.undo.step
            self._roll_back()
            self.watch = None
            return f"rolled back to the weights and optimizer before the jump at step {before}"
        if action == "predictor_reset":
            self.candidates.forget()
            return "the predictor forgets what it saw"
        if action == "stop":
            self.stop_reason = "the divergence monitor stopped the run: it stays critical"
            return "the run stops with a checkpoint"
        words = {
            "lr_cut": f"learning rate times {CUT:g}, restored within {RECOVERY_STEPS} steps",
            "shorter_horizon": f"horizons halved for {SHORT_STEPS} steps",
            "skip_batch": "the update was skipped",
        }
        return words.get(action, "")

    def _tell_news(self) -> None:
        """Emit what advisers did: switches of the bandit, changes by auto-tuning."""
        step = self.context.step()
        for code, message in self.bandit.news():
            self.context.emit(WarningEvent, step=step, code=code, message=message)
        for key, old, new, reason in self.tuner.changes():
            self.context.emit(ConfigChanged, step=step, key=key, old=old, new=new, reason=reason)

    # State

    def _components(self) -> tuple[NoAdvice, ...]:
        return self.dynamics, self.monitor, self.residuals, self.corrector, self.bandit, self.tuner

    def parts(self) -> dict[str, Stateful]:
        """What a checkpoint holds of it."""
        advice = {
            "hybrid_dynamics": self.dynamics,
            "hybrid_monitor": self.monitor,
            "hybrid_residuals": self.residuals,
            "hybrid_corrector": self.corrector,
            "hybrid_bandit": self.bandit,
            "hybrid_tuner": self.tuner,
        }
        stateful = {name: piece for name, piece in advice.items() if isinstance(piece, Stateful)}
        return {"hybrid": self, "hybrid_undo": self.undo, **self.candidates.parts(), **stateful}

    def state(self) -> Part:
        """Decisions so far and what they rest on."""
        return Part(
            values={
                "controller": self.controller.values(),
                "trend": self.trend.values(),
                "candidates": self.candidates.values(),
                "watch": None if self.watch is None else self.watch.values(),
                "owes_damping": self.owes_damping,
            }
        )

    def load(self, part: Part) -> None:
        """Restore. Raises CheckpointError."""
        values: dict[str, Any] = part.values
        try:
            self.controller.load(values["controller"])
            self.trend.load(values["trend"])
            self.candidates.load(self._records(values))
            self.controller.averages = self.candidates.chosen.spec.averages
            self.watch = None if values["watch"] is None else Watch.of(values["watch"])
            self.owes_damping = bool(values["owes_damping"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the hybrid trainer's state cannot be used: {error}") from None
        self.context.phases.current = self.controller.phase

    def _records(self, values: dict[str, Any]) -> dict[str, Any]:
        """The predictors' records; checkpoints of before there could be several hold that of the only one."""
        if "candidates" in values:
            return dict(values["candidates"])
        record = {**values["acceptance"], "predictions": values["controller"]["predictions"], "rests": False}
        return {"chosen": self.config.predictor, "records": {self.config.predictor: record}}

    def reset(self) -> None:
        """As at the beginning of a run: what a checkpoint made without it restores to."""
        self.candidates.reset()
        self.controller = PhaseController(self.config, averages=self.candidates.chosen.spec.averages)
        self.trend = LossTrend()
        self.watch, self.owes_damping = None, False
        self.context.phases.current = self.controller.phase
