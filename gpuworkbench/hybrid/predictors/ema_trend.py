"""A running mean of the displacements, extrapolated: the slow trend, never the last noisy step.

    d_n = (w_{t_n} - w_{t_{n-1}}) / (t_n - t_{n-1})        a displacement a step, every full_steps / 4 steps
    u_n = beta u_{n-1} + (1 - beta) d_n
    w  += horizon u_n / (1 - beta^n)                       the bias correction of Adam

Off in the first 13 % and the last 30 % of a run: early the path bends, and late the falling learning rate shortens it.
"""

from __future__ import annotations

import torch

from gpuworkbench.hybrid.predictors.base import Predictor

BETA = 0.7
DISPLACEMENTS_A_PHASE = 4
MIN_DISPLACEMENTS = 3


class EmaTrend(Predictor):
    """Keeps the weights of the last look and the trend: 8 bytes a parameter."""

    kinds = ("before", "trend")
    proposes_freely = True
    predicts_path = True

    @property
    def stride(self) -> int:
        """True steps between two looks."""
        return max(1, self.config.full_steps // DISPLACEMENTS_A_PHASE)

    def observe(self, step: int, until_jump: int) -> None:
        """Every `stride` steps the displacement since the last look joins the trend."""
        if not self.slots:
            self._look(step)
            self.slots["trend"] = {name: trend.zero_() for name, trend in self.body.slot().items()}
            self.numbers["count"] = 0
        self.numbers["step"] = step
        steps = step - self.numbers["before_step"]
        if steps >= self.stride:
            self._add_displacement(steps)
            self._look(step)

    def ready(self) -> str:
        """After a few displacements."""
        seen = self.numbers.get("count", 0)
        return "" if seen >= MIN_DISPLACEMENTS else f"{seen} of {MIN_DISPLACEMENTS} displacements seen"

    @torch.no_grad()
    def propose(self, horizon: int, step: int) -> None:
        """`horizon` steps along the trend."""
        scale = horizon / (1 - BETA ** self.numbers["count"])
        for name, trend in self.slots["trend"].items():
            self.body.add(name, trend * scale)

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

    @torch.no_grad()
    def _add_displacement(self, steps: int) -> None:
        for name, trend in self.slots["trend"].items():
            displacement = self.body.read(name) - self.slots["before"][name]
            trend.lerp_(displacement.div_(steps), 1 - BETA)
        self.numbers["count"] += 1

    def _look(self, step: int) -> None:
        self.keep("before")
        self.numbers["before_step"] = step
