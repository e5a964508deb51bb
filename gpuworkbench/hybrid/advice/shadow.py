"""Shadow proposals: what the predictor would do, undone at once, and held against what the weights then really did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.errors import CheckpointError
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.candidates import Candidate, Candidates
from gpuworkbench.hybrid.components import NoAdvice, Outcome
from gpuworkbench.hybrid.controller import FULL, PhaseController
from gpuworkbench.hybrid.residuals import ResidualStore, compare
from gpuworkbench.parts import Part

KINDS = ("start", "predicted")


class ShadowAdvice(NoAdvice):
    """Once a full phase, `horizon` steps before its end; 8 bytes a parameter until then. Only for predictors whose
    proposals change nothing but the weights."""

    version = 1

    def __init__(self, body: Body, config: HybridConfig) -> None:
        self.body = body
        self.horizon = max(1, min(config.max_predict_steps, config.full_steps - 1))
        self.only = config.predictor
        self.store = ResidualStore()
        self.due_step = 0  # at which the proposal can be compared; 0: there is none
        self.proposed_by, self.turn = "", 0  # proposals so far: predictors take turns
        self.slots: dict[str, dict[str, Tensor]] = {}

    def reset(self) -> None:
        """As at the beginning of a run."""
        self.store, self.due_step, self.slots = ResidualStore(), 0, {}
        self.proposed_by, self.turn = "", 0

    def after_step(self, candidates: Candidates, step: int, controller: PhaseController) -> None:
        """Compare a proposal that has come of age; make one where the phase has `horizon` steps left."""
        if self.due_step and step >= self.due_step:
            self._compare(step)
        is_time = controller.phase == FULL and controller.until_jump() == self.horizon
        if not is_time or self.due_step:
            return
        able = [c for c in candidates if c.predictor.proposes_freely and not c.predictor.ready()]
        if able:
            self._propose(able[self.turn % len(able)], step)

    def judged(self, outcome: Outcome) -> None:
        """A real jump: the steps after it are not those that the shadow was of."""
        self._forget()

    def undone(self) -> None:
        """The weights went back."""
        self._forget()

    def cosine(self) -> float | None:
        """Mean of the last proposals'."""
        return self.store.mean_cosine()

    @torch.no_grad()
    def _propose(self, candidate: Candidate, step: int) -> None:
        names = self.body.parameters
        raw = {name: [t.clone() for t in self.body.weights.raw(p)] for name, p in names.items()}
        self.slots["start"] = self.body.copies()
        candidate.predictor.propose(self.horizon, step)
        self.body.moved()
        self.slots["predicted"] = {
            name: self.body.empty(name).copy_(self.body.read(name)).sub_(self.slots["start"][name]) for name in names
        }
        for name, parameter in names.items():
            for tensor, copy in zip(self.body.weights.raw(parameter), raw[name], strict=True):
                tensor.copy_(copy)
        self.due_step, self.proposed_by, self.turn = step + self.horizon, candidate.name, self.turn + 1

    @torch.no_grad()
    def _compare(self, step: int) -> None:
        start, predicted = self.slots["start"], self.slots["predicted"]
        actual = {name: self.body.read(name) - start[name] for name in self.body.parameters}
        if step == self.due_step:
            self.store.add(compare(step, self.horizon, self.proposed_by, predicted, actual))
        self._forget()

    def _forget(self) -> None:
        self.due_step, self.slots = 0, {}

    def state(self) -> Part:
        """The store, and the proposal that waits."""
        part = self.store.state()
        tensors = {f"waiting/{kind}/{name}": t for kind, slot in self.slots.items() for name, t in slot.items()}
        own = {"due_step": self.due_step, "proposed_by": self.proposed_by, "turn": self.turn}
        return Part({**part.tensors, **tensors}, {**part.values, **own})

    def load(self, part: Part) -> None:
        """Restore. Raises CheckpointError."""
        values: dict[str, Any] = dict(part.values)
        try:
            self.due_step = int(values.pop("due_step"))
            self.proposed_by = str(values.pop("proposed_by", self.only))  # one of before there could be several
            self.turn = int(values.pop("turn", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the shadow proposals of the checkpoint are damaged: {error}") from None
        waiting = {name: part.tensors[name] for name in part.tensors if name.startswith("waiting/")}
        rest = {name: part.tensors[name] for name in part.tensors if name not in waiting}
        self.store.load(Part(rest, values))
        self.slots = {}
        for full_name, saved in waiting.items():
            _, kind, name = full_name.split("/", 2)
            if kind not in KINDS or name not in self.body.parameters:
                raise CheckpointError(f"shadow proposal {full_name!r} does not belong to this run")
            self.slots.setdefault(kind, {})[name] = self.body.empty(name).copy_(saved)
