"""What a predictor is: it watches the weights' path and moves them ahead on it, in place."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.errors import CheckpointError
from gpuworkbench.hybrid.body import Body
from gpuworkbench.hybrid.components import NoAdvice
from gpuworkbench.parts import Part

_SEPARATOR = "/"


class Predictor:
    """Base of the predictors.

    A subclass keeps tensors by weight in `slots` (kind -> weight's name -> fp32 tensor, made by `body`), and plain
    numbers in `numbers`; both are saved with every checkpoint. `version` changes when their meaning does.
    """

    kinds: ClassVar[tuple[str, ...]] = ()  # of `slots`
    proposes_freely = False  # `propose` changes nothing but the weights: it may be asked in shadow
    predicts_path = False  # it proposes where the weights will be, so that the truth can correct it
    version = 1

    def __init__(self, body: Body, config: HybridConfig, seed: int) -> None:
        self.body = body
        self.config = config
        self.seed = seed
        self.slots: dict[str, dict[str, Tensor]] = {}
        self.numbers: dict[str, int] = {}

    def advised_by(self, dynamics: NoAdvice) -> None:
        """Whose state may be read; most predictors ask nobody."""

    def observe(self, step: int, until_jump: int) -> None:
        """`step` true steps are done. A jump can follow after `until_jump` further ones (0: now).

        Called after every true step from the first full phase on, and when a phase begins; perhaps twice for a step.
        """

    def ready(self) -> str:
        """Why there is nothing to propose yet; "": a jump can be proposed."""
        return ""

    def propose(self, horizon: int, step: int) -> None:
        """Move the weights, in place, by what stands for `horizon` steps from here.

        Asked again after the weights were put back, it must do the same for the same horizon, except where
        `spec.doubles` is off: then it is asked once.
        """
        raise NotImplementedError

    def accepted(self) -> None:
        """The proposal stands; the weights are as it made them."""

    def rejected(self) -> None:
        """The proposal was undone, at once or after a few true steps; the weights are those before it."""

    def displaced(self) -> None:
        """The weights were moved by another predictor's jump that stands, or went back with one: the path begins anew
        here. What was learnt of its directions stays. Without state there is nothing to do."""

    def reset(self) -> None:
        """Forget everything."""
        self.slots, self.numbers = {}, {}

    @property
    def num_bytes(self) -> int:
        """Bytes of state now."""
        return sum(tensor.nbytes for slot in self.slots.values() for tensor in slot.values())

    def keep(self, kind: str) -> None:
        """Make slot `kind` hold the weights as they are."""
        slot = self.slots.get(kind)
        if slot is None:
            self.slots[kind] = self.body.copies()
            return
        for name, tensor in slot.items():
            tensor.copy_(self.body.read(name))

    def state(self) -> Part:
        """Live tensors by kind and name."""
        tensors = {
            f"{kind}{_SEPARATOR}{name}": tensor for kind, slot in self.slots.items() for name, tensor in slot.items()
        }
        return Part(tensors, {"predictor": self.config.predictor, **self.numbers})

    def load(self, part: Part) -> None:
        """Restore; what another predictor left (before a fork) is passed over. Raises CheckpointError."""
        self.reset()
        values = dict(part.values)
        if values.pop("predictor") != self.config.predictor:
            return
        found: dict[str, int] = {}
        for full_name, saved in part.tensors.items():
            kind, _, name = full_name.partition(_SEPARATOR)
            parameter = self.body.parameters.get(name)
            if kind not in self.kinds or parameter is None or saved.shape != parameter.shape:
                raise CheckpointError(f"predictor state {full_name!r} {tuple(saved.shape)} does not belong to this run")
            if kind not in self.slots:
                self.slots[kind] = self.body.slot()
            self.slots[kind][name].copy_(saved)
            found[kind] = found.get(kind, 0) + 1
        if any(number != len(self.body.parameters) for number in found.values()):
            raise CheckpointError("predictor state is not complete")
        self.numbers = {name: int(value) for name, value in values.items()}
