"""A running average of the weights, validated beside them: about where a decay of the learning rate would land.

a = decay a + (1 - decay) w        after every true step (Polyak and Juditsky 1992, in its exponential form)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpuworkbench.hybrid.body import Body
from gpuworkbench.parts import Part, Stateful, check_names


class NoAverage:
    """No average is kept."""

    is_on = False

    def parts(self) -> dict[str, Stateful]:
        """Nothing to save."""
        return {}

    def update(self) -> None:
        """Nothing to do."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The weights as they are."""
        yield


class WeightAverage(NoAverage):
    """fp32, 4 bytes a parameter; begins as the weights after the first step."""

    is_on = True
    version = 1

    def __init__(self, body: Body, decay: float) -> None:
        self.body = body
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def parts(self) -> dict[str, Stateful]:
        """The average, by the weights' names."""
        return {"weight_average": self}

    @torch.no_grad()
    def update(self) -> None:
        """A true step was taken."""
        if not self.average:
            self.average = self.body.copies()
            return
        for name, average in self.average.items():
            average.lerp_(self.body.read(name), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averaged weights; after, its own ones, bit for bit."""
        own = {
            name: [tensor.to(self.body.state_device, copy=True) for tensor in self.body.weights.raw(parameter)]
            for name, parameter in self.body.parameters.items()
        }
        try:
            for name, average in self.average.items():
                parameter = self.body.parameters[name]
                self.body.weights.write(parameter, average.to(parameter.device))
            yield
        finally:
            for name, copies in own.items():
                for tensor, copy in zip(self.body.weights.raw(self.body.parameters[name]), copies, strict=True):
                    tensor.copy_(copy)

    def state(self) -> Part:
        """Live tensors by name."""
        return Part(dict(self.average))

    def load(self, part: Part) -> None:
        """Restore. Raises CheckpointError."""
        self.average = {}
        if part.tensors:
            check_names("averages", self.body.parameters, part.tensors)
            self.average = {name: average.copy_(part.tensors[name]) for name, average in self.body.slot().items()}

    def reset(self) -> None:
        """As before the first step."""
        self.average = {}
