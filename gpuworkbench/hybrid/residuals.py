"""What shadow proposals got wrong: the only honest source, since what a real jump replaced is never observed.

A proposal for the next K true steps is kept; K steps later its delta is held against what the weights really did:
per-tensor cosines, and the difference compressed to rank 4. Memory is bounded by `capacity_bytes`: the oldest go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpuworkbench.errors import CheckpointError
from gpuworkbench.hybrid.low_rank import LowRank, compress
from gpuworkbench.parts import Part

CAPACITY_BYTES = 32 << 20


class Residual(NamedTuple):
    """One proposal against the truth. `deltas` by tensor: actual minus predicted displacement."""

    step: int
    horizon: int
    predictor: str
    cosines: dict[str, float]
    cosine: float  # of the whole displacement
    relative_error: float  # norm of the difference over the norm of what really happened
    deltas: dict[str, LowRank]
    num_bytes: int
    full_bytes: int
    error: float  # of the compression: missing norm over the difference's norm
    context: tuple[float, ...] = ()  # the state of training that the proposal was made in
    corrected_error: float | None = None  # what `relative_error` would have been with the correction of jumps
    norm: float | None = None  # of the difference

    @property
    def ratio(self) -> float:
        """How many times smaller than the fp32 differences."""
        return self.full_bytes / max(self.num_bytes, 1)


def compare(
    step: int, horizon: int, predictor: str, predicted: Mapping[str, Tensor], actual: Mapping[str, Tensor]
) -> Residual:
    """The residual of one proposal; both by parameter name, fp32 displacements over the same `horizon` true steps."""
    cosines, deltas = {}, {}
    dots = squares = norms = missing = differences = 0.0
    full_bytes = 0
    for name, truth in actual.items():
        guess = predicted[name].to(truth.device).float()
        truth = truth.float()  # noqa: PLW2901
        dot, square, norm = float((guess * truth).sum()), float(guess.square().sum()), float(truth.square().sum())
        cosines[name] = _cosine(dot, square, norm)
        dots, squares, norms = dots + dot, squares + square, norms + norm
        difference = truth - guess
        kept = compress(difference)
        deltas[name] = LowRank(kept.left.cpu(), kept.right.cpu(), kept.shape, kept.error)
        size = float(difference.square().sum())
        differences += size
        missing += size * kept.error**2
        full_bytes += 4 * truth.numel()
    return Residual(
        step=step,
        horizon=horizon,
        predictor=predictor,
        cosines=cosines,
        cosine=_cosine(dots, squares, norms),
        relative_error=(differences / norms) ** 0.5 if norms > 0.0 else 0.0,
        deltas=deltas,
        num_bytes=sum(kept.num_bytes for kept in deltas.values()),
        full_bytes=full_bytes,
        error=(missing / differences) ** 0.5 if differences > 0.0 else 0.0,
        norm=differences**0.5,
    )


def _cosine(dot: float, square: float, norm: float) -> float:
    return dot / (square * norm) ** 0.5 if square > 0.0 and norm > 0.0 else 0.0


class ResidualStore:
    """The newest residuals, within a bound of bytes."""

    version = 1

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.kept: list[Residual] = []
        self.seen = 0

    def add(self, residual: Residual) -> None:
        """Keep it, and let the oldest go until what is kept fits; one that alone does not fit is not kept."""
        self.seen += 1
        self.kept.append(residual)
        while self.kept and self.num_bytes > self.capacity_bytes:
            del self.kept[0]

    @property
    def num_bytes(self) -> int:
        """Of all differences kept."""
        return sum(residual.num_bytes for residual in self.kept)

    def mean_cosine(self, last: int = 5) -> float | None:
        """How well the last shadow proposals pointed; None before the first."""
        found = [residual.cosine for residual in self.kept[-last:]]
        return sum(found) / len(found) if found else None

    def last_norm(self) -> float | None:
        """Length of what the newest shadow proposal missed; None before the first."""
        return self.kept[-1].norm if self.kept else None

    def state(self) -> Part:
        """Factors as tensors "<index>/left|right/<parameter>", the rest as values."""
        tensors, rows = {}, []
        for index, residual in enumerate(self.kept):
            row: dict[str, Any] = residual._asdict()
            row["deltas"] = {name: [list(kept.shape), kept.error] for name, kept in residual.deltas.items()}
            rows.append({**row, "cosines": dict(residual.cosines), "context": list(residual.context)})
            for name, kept in residual.deltas.items():
                tensors[f"{index}/left/{name}"] = kept.left
                tensors[f"{index}/right/{name}"] = kept.right
        return Part(tensors, {"kept": rows, "seen": self.seen})

    def load(self, part: Part) -> None:
        """Put the saved residuals in the place of the present ones. Raises CheckpointError."""
        try:
            kept = [_restored(index, row, part.tensors) for index, row in enumerate(part.values["kept"])]
            self.seen = int(part.values["seen"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"residuals of the checkpoint are damaged: {error}") from None
        self.kept = kept


def _restored(index: int, row: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Residual:
    deltas = {
        name: LowRank(
            torch.clone(tensors[f"{index}/left/{name}"]),
            torch.clone(tensors[f"{index}/right/{name}"]),
            tuple(shape),
            float(error),
        )
        for name, (shape, error) in row["deltas"].items()
    }
    return Residual(**{**row, "deltas": deltas, "context": tuple(row.get("context", ()))})
