"""Learned coefficients over the last five displacements of each layer group: `linear`, `mlp` and `learned`.

They learn, from hindsight (coefficients.py), the coefficients c of the next displacement, and move the weights to the
average of the path around here:

    w -> mean of w over the last six looks and the next horizon / stride ones, the latter as c continues the path

Going straight to where c points is what displacement matching suggests, and it fails: on recorded runs c explains a
third of the next displacement, and a move along it *raises* the loss, since the last step's noise lies along the
steepest directions of the loss. The average leaves that noise out and keeps the trend. docs/hybrid-parts.md has the
figures. They differ in what c is read from: the geometry of the path by least squares (`linear`) or a small network
(`mlp`), or the state of the dynamics model beside it (`learned`).
"""

from __future__ import annotations

import numpy as np
import torch

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.predictors import MAX_DISPLACEMENTS
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.coefficients import (
    N_INPUTS,
    LinearCoefficients,
    MlpCoefficients,
    inputs_of,
    lesson,
    slow_path,
)
from gpuworkbench.hybrid.components import NoAdvice
from gpuworkbench.hybrid.dynamics.rssm import HIDDEN, LATENT
from gpuworkbench.hybrid.layer_groups import layer_groups
from gpuworkbench.hybrid.predictors.subspace import Subspace
from gpuworkbench.parts import Part

MAX_AHEAD = 2.0  # looks ahead that the average reaches: further ones are not known well enough
_MODEL = "model/"


class LinearPredictor(Subspace):
    """24 bytes a parameter, as `subspace`. Its aim is the average of the path and not its next point."""

    predicts_path = False

    def __init__(self, body: Body, config: HybridConfig, seed: int) -> None:
        super().__init__(body, config, seed)
        self.model: LinearCoefficients | MlpCoefficients = self._fresh()

    def _fresh(self) -> LinearCoefficients | MlpCoefficients:
        return LinearCoefficients()

    def _inputs(self, gram: np.ndarray) -> np.ndarray:
        return inputs_of(gram)

    def ready(self) -> str:
        """After five displacements, and some lessons."""
        seen = self.numbers.get("count", 0)
        if seen < MAX_DISPLACEMENTS + 1:
            return f"{seen} of {MAX_DISPLACEMENTS + 1} displacements seen"
        return ""

    @torch.no_grad()
    def propose(self, horizon: int, step: int) -> None:
        """Each layer group moves to the average of its path."""
        kept = self._kept()
        for names in layer_groups(self.body.parameters):
            gram = self._gram(kept, names).numpy()
            unit_next = self.model.predict(self._inputs(gram))
            coefficients = slow_path(unit_next, gram, min(horizon / self.stride, MAX_AHEAD))
            for name in names:
                delta = torch.zeros_like(kept[0][name])
                for coefficient, displacement in zip(coefficients.tolist(), kept, strict=True):
                    delta.add_(displacement[name], alpha=coefficient)
                self.body.add(name, delta)

    @torch.no_grad()
    def _add_displacement(self) -> None:
        """Learn from the displacement that has come, before it takes the place of the oldest."""
        if self.numbers["count"] >= MAX_DISPLACEMENTS:
            kept, before = self._kept(), self.slots["before"]
            for names in layer_groups(self.body.parameters):
                gram = self._gram(kept, names).numpy()
                came = {name: self.body.read(name) - before[name] for name in names}
                products = [
                    torch.stack([torch.dot(slot[name].flatten(), came[name].flatten()) for name in names])
                    for slot in (*kept, came)
                ]
                found = torch.stack(products).double().sum(1).cpu().numpy()
                taught = lesson(gram, found[:-1], float(found[-1]))
                self.model.learn(taught._replace(inputs=self._inputs(gram)))
        super()._add_displacement()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.model = self._fresh()

    def state(self) -> Part:
        """The displacements and the model."""
        part, inner = super().state(), self.model.state()
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in inner.tensors.items()}
        return Part({**part.tensors, **tensors}, {**part.values, "lessons": self.model.count})

    def load(self, part: Part) -> None:
        """Restore. Raises CheckpointError."""
        values = dict(part.values)
        lessons = values.pop("lessons", None)
        names = list(part.tensors)
        super().load(Part({name: part.tensors[name] for name in names if not name.startswith(_MODEL)}, values))
        if values["predictor"] == self.config.predictor:
            tensors = {name.removeprefix(_MODEL): part.tensors[name] for name in names if name.startswith(_MODEL)}
            self.model.load(Part(tensors, {"count": lessons}))


class MlpPredictor(LinearPredictor):
    """As `linear`, by a network of one hidden layer."""

    def _fresh(self) -> LinearCoefficients | MlpCoefficients:
        return MlpCoefficients(seed=self.seed)


class LearnedPredictor(LinearPredictor):
    """As `linear`, with the state of the dynamics model among the inputs."""

    def __init__(self, body: Body, config: HybridConfig, seed: int) -> None:
        self.dynamics = NoAdvice()
        super().__init__(body, config, seed)

    def advised_by(self, dynamics: NoAdvice) -> None:
        """The model whose state is read."""
        self.dynamics = dynamics

    def _fresh(self) -> LinearCoefficients | MlpCoefficients:
        return LinearCoefficients(N_INPUTS + HIDDEN + LATENT)

    def _inputs(self, gram: np.ndarray) -> np.ndarray:
        latent = self.dynamics.latent()
        return np.concatenate((inputs_of(gram), np.zeros(HIDDEN + LATENT) if latent is None else latent))
