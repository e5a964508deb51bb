"""Shadow proposals: what a predictor would do, undone at once, and held against what the weights then really did.

From what they missed the next jumps are corrected (jump_correction.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpuworkbench.errors import CheckpointError
from gpuworkbench.hybrid.body import Body, Correct
from gpuworkbench.hybrid.candidates import Candidate, Candidates
from gpuworkbench.hybrid.components import NoAdvice, Outcome
from gpuworkbench.hybrid.controller import FULL, PhaseController
from gpuworkbench.hybrid.jump_correction import Correction, Gains, key_of, learn_gains
from gpuworkbench.hybrid.residuals import ResidualStore, compare
from gpuworkbench.parts import Part

KINDS = ("start", "predicted")
GAINS = "gains."


class ShadowAdvice(NoAdvice):
    """Once a full phase, `horizon` steps before its end; 8 bytes a parameter until then. Only for predictors whose
    proposals change nothing but the weights; several take turns. `corrector` describes the state of training."""

    version = 1

    def __init__(self, body: Body, candidates: Candidates, corrector: NoAdvice) -> None:
        config = candidates.config
        self.body, self.candidates, self.corrector = body, candidates, corrector
        self.horizon = max(1, min(config.max_predict_steps, config.full_steps - 1))
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.store, self.gains = ResidualStore(), Gains()
        self.due_step = 0  # at which the proposal can be compared; 0: there is none
        self.proposed_by, self.turn = "", 0  # proposals so far
        self.inputs_now: list[float] = []  # of the corrector, when this full phase began
        self.slots: dict[str, dict[str, Tensor]] = {}

    def phase_began(self) -> None:
        """All that is proposed until the next full phase belongs to this state of training: scalars of later steps may
        still be on the card when it is needed."""
        self.inputs_now = self.corrector.inputs()

    def after_step(self, step: int, controller: PhaseController) -> None:
        """Compare a proposal that has come of age; make one where the phase has `horizon` steps left."""
        if self.due_step and step >= self.due_step:
            self._compare(step)
        is_time = controller.phase == FULL and controller.until_jump() == self.horizon
        if not is_time or self.due_step:
            return
        able = [c for c in self.candidates if c.predictor.proposes_freely and not c.rests and not c.predictor.ready()]
        if able:
            self._propose(able[self.turn % len(able)], step)

    def judged(self, outcome: Outcome) -> None:
        """A real jump: the steps after it are not those that the shadow was of."""
        self._forget()

    def undone(self) -> None:
        """The weights went back."""
        self._forget()

    def residual_norm(self) -> float | None:
        """Length of what the last proposal missed."""
        return self.store.last_norm()

    def cosine(self) -> float | None:
        """Mean of the last proposals'."""
        return self.store.mean_cosine()

    def correction(self, predictor: str, horizon: int) -> Correct | None:
        """For predictors of the path; others are meant to differ from it."""
        if not self._predicts_path(predictor):
            return None
        correction = Correction(self.store.kept, predictor, self.inputs_now, horizon)

        def correct(name: str, delta: Tensor) -> Tensor:
            a, b = self.gains.of(key_of(predictor, name))
            corrected = delta * (1.0 + a)
            return corrected.add_(correction.of(name, delta.device), alpha=b) if b > 0.0 else corrected

        return correct

    def _predicts_path(self, predictor: str) -> bool:
        return any(c.predictor.predicts_path for c in self.candidates if c.name == predictor)

    @torch.no_grad()
    def _propose(self, candidate: Candidate, step: int) -> None:
        names = self.body.parameters
        raw = {name: [t.clone() for t in self.body.weights.raw(p)] for name, p in names.items()}
        self.slots["start"] = self.body.copies(again="shadow start")
        candidate.predictor.propose(self.horizon, step)
        self.body.moved()
        predicted = self.body.copies(again="shadow predicted")
        self.slots["predicted"] = {name: moved.sub_(self.slots["start"][name]) for name, moved in predicted.items()}
        for name, parameter in names.items():
            for tensor, copy in zip(self.body.weights.raw(parameter), raw[name], strict=True):
                tensor.copy_(copy)
        self.due_step, self.proposed_by, self.turn = step + self.horizon, candidate.name, self.turn + 1

    @torch.no_grad()
    def _compare(self, step: int) -> None:
        start, predicted = self.slots["start"], self.slots["predicted"]
        if step == self.due_step:
            actual = {name: self.body.read(name) - start[name] for name in self.body.parameters}
            error = None
            if self._predicts_path(self.proposed_by):
                correction = Correction(self.store.kept, self.proposed_by, self.inputs_now, self.horizon)
                error = learn_gains(self.gains, self.proposed_by, correction, predicted, actual)
            residual = compare(step, self.horizon, self.proposed_by, predicted, actual)
            self.store.add(residual._replace(context=tuple(self.inputs_now), corrected_error=error))
        self._forget()

    def _forget(self) -> None:
        self.due_step, self.slots = 0, {}

    def state(self) -> Part:
        """The store, the gains, and the proposal that waits."""
        part, gains = self.store.state(), self.gains.state()
        tensors = {f"waiting/{kind}/{name}": t for kind, slot in self.slots.items() for name, t in slot.items()}
        own = {"due_step": self.due_step, "proposed_by": self.proposed_by, "turn": self.turn}
        own |= {"inputs_now": list(self.inputs_now), **{f"{GAINS}{name}": v for name, v in gains.values.items()}}
        return Part({**part.tensors, **tensors}, {**part.values, **own})

    def load(self, part: Part) -> None:
        """Restore. Raises CheckpointError."""
        values: dict[str, Any] = dict(part.values)
        try:
            self.due_step = int(values.pop("due_step"))
            # The following were not kept by versions that corrected no jump and held one predictor.
            self.proposed_by = str(values.pop("proposed_by", self.candidates.config.predictor))
            self.turn = int(values.pop("turn", 0))
            self.inputs_now = [float(value) for value in values.pop("inputs_now", ())]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the shadow proposals of the checkpoint are damaged: {error}") from None
        self.gains = Gains()
        if f"{GAINS}sums" in values:
            self.gains.load(Part(values={name: values.pop(f"{GAINS}{name}") for name in Gains.NAMES}))
        waiting = {name: part.tensors[name] for name in part.tensors if name.startswith("waiting/")}
        rest = {name: part.tensors[name] for name in part.tensors if name not in waiting}
        self.store.load(Part(rest, values))
        self.slots = {}
        for full_name, saved in waiting.items():
            _, kind, name = full_name.split("/", 2)
            if kind not in KINDS or name not in self.body.parameters:
                raise CheckpointError(f"shadow proposal {full_name!r} does not belong to this run")
            if kind not in self.slots:
                self.slots[kind] = self.body.slot(again=f"shadow {kind}")
            self.slots[kind][name].copy_(saved)
        if len(waiting) != len(self.slots) * len(self.body.parameters):
            raise CheckpointError("the shadow proposal of the checkpoint is not complete")
