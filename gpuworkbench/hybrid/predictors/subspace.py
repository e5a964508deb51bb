"""A linear recurrence of the last displacements, per layer group: dynamic mode decomposition in companion form
(Schmid 2010), through Gram matrices of at most 5 x 5.

    d_i = w_{t_i} - w_{t_{i-1}}, i = 1..m, m <= 5       one every full_steps / 5 steps
    c   = argmin |d_m - sum_j c_j d_j|^2 + ridge,  j < m       (from the Gram matrix G_ij = d_i . d_j alone)
    d_{m+1} = sum_j c_j d_{j+1}, and so on                     (coefficients over d_1..d_m, never a new vector)
    w  += the first `horizon` steps of d_{m+1} + d_{m+2} + ...

Weights whose error decays in at most m - 1 modes are predicted exactly. A predicted displacement is never longer than
the longest that was seen: what grows without bound was noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpuworkbench.config.predictors import MAX_DISPLACEMENTS
from gpuworkbench.hybrid.layer_groups import layer_groups
from gpuworkbench.hybrid.predictors.base import Predictor

RIDGE = 1e-6  # of the mean diagonal of the Gram matrix
MIN_DISPLACEMENTS = 3


class Subspace(Predictor):
    """Keeps five displacements and the weights of the last look: 24 bytes a parameter."""

    kinds = ("before", *(f"d{number}" for number in range(MAX_DISPLACEMENTS)))
    proposes_freely = True
    predicts_path = True

    @property
    def stride(self) -> int:
        """True steps between two looks."""
        return max(1, self.config.full_steps // MAX_DISPLACEMENTS)

    def observe(self, step: int, until_jump: int) -> None:
        """Every `stride` steps the displacement since the last look is kept, in place of the oldest."""
        if not self.slots:
            self._look(step)
            self.numbers["count"] = 0
        self.numbers["step"] = step
        if step - self.numbers["before_step"] == self.stride:
            self._add_displacement()
            self._look(step)

    def ready(self) -> str:
        """After a few displacements."""
        seen = self.numbers.get("count", 0)
        return "" if seen >= MIN_DISPLACEMENTS else f"{seen} of {MIN_DISPLACEMENTS} displacements seen"

    @torch.no_grad()
    def propose(self, horizon: int, step: int) -> None:
        """Each layer group moves by its own combination of its displacements."""
        kept = self._kept()
        for names in layer_groups(self.body.parameters):
            gram = self._gram(kept, names)
            coefficients = continued(gram, horizon / self.stride)
            for name in names:
                delta = torch.zeros_like(kept[0][name])
                for coefficient, displacement in zip(coefficients.tolist(), kept, strict=True):
                    delta.add_(displacement[name], alpha=coefficient)
                self.body.add(name, delta)

    def accepted(self) -> None:
        """Displacements are counted from here: the jump itself is none."""
        self._look(self.numbers["step"])

    def rejected(self) -> None:
        """The weights may be some steps back: look anew."""
        self.displaced()

    def displaced(self) -> None:
        """What others moved is no displacement of the path."""
        if self.slots:
            self._look(self.numbers["step"])

    def _kept(self) -> list[dict[str, Tensor]]:
        """The displacements, oldest first."""
        count = self.numbers["count"]
        numbers = range(max(count - MAX_DISPLACEMENTS, 0), count)
        return [self.slots[f"d{number % MAX_DISPLACEMENTS}"] for number in numbers]

    @staticmethod
    def _gram(kept: list[dict[str, Tensor]], names: list[str]) -> Tensor:
        """(m, m) fp64 on the host."""
        size = len(kept)
        gram = torch.zeros(size, size, dtype=torch.float64)
        for row in range(size):
            for column in range(row + 1):
                dots = [torch.dot(kept[row][name].flatten(), kept[column][name].flatten()) for name in names]
                gram[row, column] = gram[column, row] = torch.stack(dots).double().sum()
        return gram

    @torch.no_grad()
    def _add_displacement(self) -> None:
        kind = f"d{self.numbers['count'] % MAX_DISPLACEMENTS}"
        if kind not in self.slots:
            self.slots[kind] = self.body.slot()
        for name, before in self.slots["before"].items():
            torch.sub(self.body.read(name), before, out=self.slots[kind][name])
        self.numbers["count"] += 1

    def _look(self, step: int) -> None:
        self.keep("before")
        self.numbers["before_step"] = step


def continued(gram: Tensor, length: float) -> Tensor:
    """Coefficients (m,) over the displacements with Gram matrix `gram` (m, m) of what the next `length` displacements
    sum up to; a part of a displacement counts as that part."""
    size = len(gram)
    past, target = gram[:-1, :-1], gram[:-1, -1]
    ridge = RIDGE * past.diagonal().mean().clamp(min=1e-300)
    recurrence = torch.linalg.solve(past + ridge * torch.eye(size - 1, dtype=gram.dtype), target)
    longest = gram.diagonal().max().sqrt()
    window = list(torch.eye(size, dtype=gram.dtype))  # each displacement as coefficients over the kept ones
    total = torch.zeros(size, dtype=gram.dtype)
    while length > 0:
        following = torch.stack(window[-(size - 1) :]).T @ recurrence
        norm = (following @ gram @ following).clamp(min=0).sqrt()
        if norm > longest:
            following = following * (longest / norm)
        total += following * min(length, 1.0)
        window.append(following)
        length -= 1.0
    return total
