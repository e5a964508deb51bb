"""The control of the jumps: a random direction, as long as the trend that another predictor would follow.

    w += horizon |w_t - w_{t_0}| / (t - t_0) g / |g|,   g ~ N(0, 1), for each weight tensor

t_0 is where the phase began. What it gains is chance, or what the probe picks out of chance.
"""

from __future__ import annotations

import hashlib

import torch

from gpuworkbench.hybrid.predictors.base import Predictor


class Random(Predictor):
    """Keeps the weights at the beginning of a phase: 4 bytes a parameter. Its numbers are a function of seed and step,
    so that no generator has to be saved."""

    kinds = ("before",)

    def observe(self, step: int, until_jump: int) -> None:
        """Remember where the phase began."""
        if not self.slots or until_jump >= self.config.full_steps:
            self.keep("before")
            self.numbers["before_step"] = step
        self.numbers["step"] = step

    def ready(self) -> str:
        """After a step."""
        return "" if self.slots and self.numbers["step"] > self.numbers["before_step"] else "no step has been seen yet"

    def displaced(self) -> None:
        """The trend's length is measured from here."""
        if self.slots:
            self.keep("before")
            self.numbers["before_step"] = self.numbers["step"]

    @torch.no_grad()
    def propose(self, horizon: int, step: int) -> None:
        """The same numbers whenever this seed asks at this step."""
        steps = self.numbers["step"] - self.numbers["before_step"]
        device = self.body.state_device
        for name, before in self.slots["before"].items():
            generator = torch.Generator(device).manual_seed(_seed(self.seed, step, name))
            direction = torch.randn(before.shape, generator=generator, device=device)
            length = torch.linalg.vector_norm(self.body.read(name) - before) * (horizon / steps)
            self.body.add(name, direction.mul_(length / torch.linalg.vector_norm(direction)))


def _seed(seed: int, step: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=7, person=b"random-jump").digest()
    return int.from_bytes(digest, "big")
