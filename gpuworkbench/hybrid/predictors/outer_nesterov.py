"""Nesterov momentum on slow weights: SNOO (Kallusky et al. 2025, arXiv 2510.15830), the one-worker form of DiLoCo's
outer step.

    s = slow - fast        the displacement of a phase, as a gradient
    b = mu b + s
    slow = slow - eta (mu b + s)
    fast = slow

mu = hybrid.outer_momentum, eta = hybrid.outer_lr. It is torch.optim.SGD(nesterov=True) on the slow weights.
"""

from __future__ import annotations

import torch

from gpuworkbench.hybrid.predictors.base import Predictor


class OuterNesterov(Predictor):
    """Keeps slow weights and their momentum: 8 bytes a parameter."""

    kinds = ("slow", "momentum")

    def observe(self, step: int, until_jump: int) -> None:
        """The weights at the beginning of the first full phase are the first slow ones."""
        if not self.slots:
            self._start()

    def ready(self) -> str:
        """Once it has seen where a phase began."""
        return "" if self.slots else "no full phase has been seen yet"

    @torch.no_grad()
    def propose(self, horizon: int, step: int) -> None:
        """One outer step; the horizon is that of the phase whatever is asked for."""
        mu, eta = self.config.outer_momentum, self.config.outer_lr
        for name, slow in self.slots["slow"].items():
            momentum = self.slots["momentum"][name]
            displacement = slow - self.body.read(name)
            momentum.mul_(mu).add_(displacement)
            slow.sub_(displacement.add_(momentum, alpha=mu), alpha=eta)
            self.body.write(name, slow)

    def rejected(self) -> None:
        """Begin anew from the weights that were better, without momentum."""
        self._start()

    def displaced(self) -> None:
        """The phase is measured from here; the momentum of those before it stays."""
        if self.slots:
            self.keep("slow")

    def _start(self) -> None:
        self.keep("slow")
        if "momentum" not in self.slots:
            self.slots["momentum"] = self.body.slot()
        for momentum in self.slots["momentum"].values():
            momentum.zero_()
