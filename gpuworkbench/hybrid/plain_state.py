"""State in named attributes: what the judges of the hybrid trainer share, so that none writes its own saving."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch

from gpuworkbench.errors import CheckpointError
from gpuworkbench.parts import Part, check_names


class PlainState:
    """A Stateful whose state is the attributes of `NAMES` (JSON values) and `TENSORS` (tensors, loaded in place), and
    the state of `CHILDREN`, which are Stateful themselves; their names get the child's before them."""

    version: int = 1
    NAMES: ClassVar[tuple[str, ...]] = ()
    TENSORS: ClassVar[tuple[str, ...]] = ()
    CHILDREN: ClassVar[tuple[str, ...]] = ()

    def state(self) -> Part:
        """A copy of the plain values; the tensors are live."""
        part = Part(
            tensors={name: getattr(self, name) for name in self.TENSORS},
            values={name: copy.deepcopy(getattr(self, name)) for name in self.NAMES},
        )
        for child in self.CHILDREN:
            inner = getattr(self, child).state()
            part.tensors |= {f"{child}.{name}": tensor for name, tensor in inner.tensors.items()}
            part.values |= {f"{child}.{name}": value for name, value in inner.values.items()}
        return part

    def load(self, part: Part) -> None:
        """Restore. Raises CheckpointError for other names, shapes or kinds of value than this version keeps."""
        what, present = type(self).__name__, self.state()
        check_names(f"{what}: values", present.values, part.values)
        check_names(f"{what}: tensors", present.tensors, part.tensors)
        for name in self.NAMES:
            old, new = getattr(self, name), part.values[name]
            if not same_kind(old, new):
                raise CheckpointError(f"{what}: {name} is {str(new)[:40]!r} in the checkpoint")
            setattr(self, name, copy.deepcopy(new))
        for name in self.TENSORS:
            fill(f"{what}: {name}", getattr(self, name), part.tensors[name])
        for child in self.CHILDREN:
            getattr(self, child).load(_inner(part, f"{child}."))


def _inner(part: Part, prefix: str) -> Part:
    tensors = {name.removeprefix(prefix): part.tensors[name] for name in part.tensors if name.startswith(prefix)}
    values = {name.removeprefix(prefix): value for name, value in part.values.items() if name.startswith(prefix)}
    return Part(tensors, values)


def fill(what: str, tensor: torch.Tensor, saved: torch.Tensor) -> None:
    """Copy `saved` into `tensor`. Raises CheckpointError when shape or type differ."""
    if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
        raise CheckpointError(
            f"{what}: {saved.dtype} {tuple(saved.shape)} in the checkpoint, {tensor.dtype} {tuple(tensor.shape)} here"
        )
    with torch.no_grad():
        tensor.copy_(saved)


def same_kind(old: Any, new: Any) -> bool:
    """Whether a saved value can stand for the present one: numbers for numbers, None for what may be unknown."""
    if old is None or new is None:
        return new is None or isinstance(new, bool | int | float | str | list | dict)
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, int | float):
        return isinstance(new, int | float) and math.isfinite(new)
    return isinstance(new, type(old))
