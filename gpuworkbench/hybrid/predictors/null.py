"""The control: everything that a prediction costs, and no prediction."""

from __future__ import annotations

from gpuworkbench.hybrid.predictors.base import Predictor


class Null(Predictor):
    """Moves nothing."""

    def propose(self, horizon: int, step: int) -> None:
        """The weights stay."""
