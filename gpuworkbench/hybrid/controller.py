"""Which phase comes next, and why: a state machine without tensors, clocks or random numbers.

    warmup -> full -> predict -> correct -> full ...

It is asked before every true step (`next`), told what was done (`stepped`, `jumped`), and answers with a move to
another phase, a jump to make, or nothing: take a true step. Every move carries its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from gpuworkbench.config.hybrid_section import HybridConfig

WARMUP, FULL, PREDICT, CORRECT = "warmup", "full", "predict", "correct"
LEGAL_MOVES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        WARMUP: frozenset({FULL}),
        FULL: frozenset({PREDICT, FULL, CORRECT}),
        PREDICT: frozenset({CORRECT, FULL}),
        CORRECT: frozenset({FULL, PREDICT}),
    }
)
MAX_CONSECUTIVE_PREDICTS = 3  # then a full phase renews what predictors know


class Move(NamedTuple):
    """Change the phase; `planned_steps` true steps of it are planned."""

    to: str
    reason: str
    planned_steps: int


class Jump(NamedTuple):
    """Jump over `virtual_steps` steps. With `exploration` the confidence gate was bypassed."""

    virtual_steps: int
    exploration: bool


class Situation(NamedTuple):
    """What the decision depends on beside the machine's own state.

    `confidence`: probability that a jump is accepted, None while nothing is known. `remaining_steps`: true steps until
    the run's end. `blocked`: why no prediction may be made now ("": it may). `diverged`: what went wrong since the
    last decision ("": nothing); it forces a full phase. `horizon_factor` in (0, 1] shortens the horizon; `horizon`
    is the one to take instead of the rule's, where somebody chose it. `predictions`: those that the predictor in
    question has made, None: all of the run's. `by`: its name, where there are several.
    """

    confidence: float | None
    remaining_steps: int
    blocked: str = ""
    diverged: str = ""
    horizon_factor: float = 1.0
    horizon: int | None = None
    predictions: int | None = None
    by: str = ""


@dataclass
class ControllerState:
    """Everything the machine remembers."""

    phase: str = WARMUP
    done: int = 0  # true steps in this phase
    jumps: list[int] = field(default_factory=list)  # virtual steps of the jumps still to make in this phase
    awaits_step: bool = False  # the last jump stands, and no true step has followed it
    n_accepted: int = 0  # jumps of this predicted phase that stand
    is_undone: bool = False  # the last jump was undone, which ends the phase
    is_exploring: bool = False
    predictions: int = 0  # predicted phases begun since the run began
    consecutive: int = 0  # predicted phases since the last full one


class PhaseController:
    """The machine. `averages`: the predictor's horizon is fixed and it needs no true steps in between; it is set anew
    where another predictor is chosen."""

    version = 1

    def __init__(self, config: HybridConfig, *, averages: bool) -> None:
        self.config = config
        self.averages = averages
        self.state = ControllerState()

    @property
    def phase(self) -> str:
        """The phase that the next true step belongs to."""
        return self.state.phase

    def is_due(self) -> bool:
        """Whether anything but a true step may come next."""
        return self.phase == PREDICT or self.state.done >= self._length(self.phase)

    def until_jump(self) -> int:
        """True steps before a jump can follow, if all goes well."""
        if self.phase == PREDICT:
            return int(self.state.awaits_step)
        further = self.config.full_steps if self.phase == WARMUP else 0
        return max(self._length(self.phase) - self.state.done, 0) + further

    def planned(self) -> int:
        """True steps that are left of the current phase."""
        if self.phase == PREDICT:
            return max(len(self.state.jumps) - 1 + self.state.awaits_step, 0)
        return max(self._length(self.phase) - self.state.done, 0)

    def correct_lr_factor(self) -> float:
        """Multiple of the learning rate for the next true step: a ramp over a correct phase, else 1."""
        if self.phase != CORRECT:
            return 1.0
        return min((self.state.done + 2) / (self.config.correct_steps + 1), 1.0)

    def next(self, situation: Situation) -> Move | Jump | None:
        """What comes now; None: a true step. A move is made when this returns."""
        if situation.diverged and self.phase != WARMUP:
            return self._enter(FULL, f"forced full: {situation.diverged}")
        if not self.is_due():
            return None
        if self.phase == WARMUP:
            return self._enter(FULL, f"{self.config.warmup_steps} steps of warm-up are done")
        if self.phase == PREDICT:
            return self._within_prediction()
        return self._after_true_steps(situation)

    def stepped(self) -> None:
        """A true step was taken."""
        self.state.done += 1
        self.state.awaits_step = False

    def jumped(self, *, accepted: bool) -> None:
        """The jump that `next` asked for was made, and stands or is undone."""
        state = self.state
        state.jumps.pop(0)
        state.is_undone = not accepted
        state.n_accepted += accepted
        state.awaits_step = accepted and bool(state.jumps)

    def has_jumped(self) -> bool:
        """Whether a jump stands that true steps may still undo."""
        return self.phase == CORRECT or self.state.n_accepted > 0

    def refused(self, reason: str) -> Move:
        """The prediction that `next` asked for cannot be made: as if it had not been, but for jumps that stand."""
        if self.state.n_accepted:
            return self._enter(CORRECT, reason)
        self.state.predictions -= 1
        return self._enter(FULL, reason)

    def _within_prediction(self) -> Move | Jump | None:
        state = self.state
        if state.is_undone and not state.n_accepted:
            return self._enter(FULL, "the jump was undone")
        if state.is_undone:
            return self._enter(CORRECT, f"a jump was undone, {state.n_accepted} before it stand")
        if state.awaits_step:
            return None
        if state.jumps:
            return Jump(state.jumps[0], state.is_exploring)
        return self._enter(CORRECT, "the jump stands" if state.n_accepted == 1 else f"{state.n_accepted} jumps stand")

    def _after_true_steps(self, situation: Situation) -> Move:
        """A full or correct phase is over: predict, if everything allows it."""
        config, state, confidence = self.config, self.state, situation.confidence
        if situation.blocked:
            return self._enter(FULL, situation.blocked)
        made = state.predictions if situation.predictions is None else situation.predictions
        explores = made < config.exploration
        if self.phase == CORRECT and (explores or self.averages):
            return self._enter(FULL, "corrected")
        if self.phase == CORRECT and state.consecutive >= MAX_CONSECUTIVE_PREDICTS:
            return self._enter(FULL, f"{state.consecutive} predictions in a row")
        if not explores and confidence is None:
            return self._enter(FULL, "no prediction has been judged yet")
        if not explores and confidence is not None and confidence < config.confidence_threshold:
            return self._enter(FULL, f"confidence {confidence:.2f} is below {config.confidence_threshold:.2f}")
        jumps = self.jumps_of(self._horizon_in(situation, None if explores else confidence))
        needed = len(jumps) - 1 + config.correct_steps + 1  # judged before the last step
        if situation.remaining_steps < needed:
            return self._enter(FULL, f"too near the end: a prediction and its correction take {needed} steps")
        state.predictions += 1
        state.consecutive += 1
        horizon, by = f"horizon {sum(jumps)}", f"{situation.by}: " if situation.by else ""
        if explores:
            of = f"{by}exploration {made + 1} of {config.exploration}, the confidence gate is bypassed"
            return self._enter(PREDICT, f"{of}; {horizon}", jumps, is_exploring=True)
        return self._enter(PREDICT, f"{by}confidence {confidence:.2f}; {horizon}", jumps)

    def chooses(self) -> bool:
        """Whether a prediction may begin now, if all else allows it."""
        return self.phase in (FULL, CORRECT) and self.is_due()

    def admits(self, confidence: float | None, predictions: int, *, averages: bool) -> bool:
        """Whether the gate lets a predictor through that has made so many predictions: only one that may predict right
        after a correct phase does so there."""
        if self.phase == CORRECT and (predictions < self.config.exploration or averages):
            return False
        return self.opens(confidence, predictions)

    def opens(self, confidence: float | None, predictions: int) -> bool:
        """Whether the confidence gate is open, or is bypassed."""
        explores = predictions < self.config.exploration
        return explores or (confidence is not None and confidence >= self.config.confidence_threshold)

    def _horizon_in(self, situation: Situation, confidence: float | None) -> int:
        if situation.horizon is None or self.averages:
            return self.horizon(confidence, situation.horizon_factor)
        chosen = math.floor(situation.horizon * situation.horizon_factor + 0.5)
        return max(1, min(self.config.max_predict_steps, chosen))

    def horizon(self, confidence: float | None, factor: float = 1.0) -> int:
        """Virtual steps of the coming prediction: more with confidence, fewer after predictions in a row.

        Linear from 1 at the gate to max_predict_steps at certainty, divided by one plus the predictions since the last
        full phase. Without a confidence (exploration) the longest; an averaging predictor's is fixed.
        """
        if self.averages:
            return self.config.full_steps
        longest, gate = self.config.max_predict_steps, self.config.confidence_threshold
        share = 1.0
        if confidence is not None and gate < 1.0:
            share = min(max((confidence - gate) / (1.0 - gate), 0.0), 1.0)
        wanted = (1.0 + (longest - 1) * share) * factor / (1 + self.state.consecutive)
        return max(1, min(longest, math.floor(wanted + 0.5)))

    def jumps_of(self, horizon: int) -> list[int]:
        """A horizon cut into jumps, with one true step between two: 5 every 2 is [2, 2, 1]."""
        interval = 0 if self.averages else self.config.correction_interval
        if not interval:
            return [horizon]
        return [min(interval, horizon - begun) for begun in range(0, horizon, interval)]

    def _enter(self, to: str, reason: str, jumps: list[int] | None = None, *, is_exploring: bool = False) -> Move:
        state = self.state
        assert to in LEGAL_MOVES[state.phase], f"{state.phase} -> {to}"
        self.state = ControllerState(
            phase=to,
            jumps=list(jumps or ()),
            is_exploring=is_exploring,
            predictions=state.predictions,
            consecutive=0 if to == FULL else state.consecutive,
        )
        return Move(to, reason, self.planned())

    def _length(self, phase: str) -> int:
        config = self.config
        return {WARMUP: config.warmup_steps, FULL: config.full_steps, CORRECT: config.correct_steps, PREDICT: 0}[phase]

    def values(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return asdict(self.state)

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore `values`. Raises ValueError for what is no such state."""
        fresh = asdict(ControllerState())
        if set(values) != set(fresh) or values["phase"] not in LEGAL_MOVES:
            raise ValueError(f"phase state {sorted(values)} is not this version's")
        for name, value in values.items():
            if type(value) is not type(fresh[name]) or (isinstance(value, int) and value < 0):
                raise ValueError(f"phase state {name} is {value!r}")
        if any(type(jump) is not int or jump < 1 for jump in values["jumps"]):
            raise ValueError(f"phase state jumps is {values['jumps']!r}")
        self.state = ControllerState(**{**values, "jumps": list(values["jumps"])})
