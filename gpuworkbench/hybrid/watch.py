"""A jump that stands for now: what its true steps must not exceed, what was predicted, and what they came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Watch:
    """`limit`: the loss before the jump plus some standard deviations; None while too little is known."""

    limit: float | None
    predicted: float | None
    losses: list[float] = field(default_factory=list)

    def mean_loss(self) -> float:
        """Of the true steps since the jump that had a loss; NaN where none had."""
        known = [loss for loss in self.losses if not math.isnan(loss)]
        return math.fsum(known) / len(known) if known else math.nan

    def values(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return {**asdict(self), "losses": [None if math.isnan(loss) else loss for loss in self.losses]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Watch:
        """Restored from `values`."""
        losses = [math.nan if loss is None else float(loss) for loss in values["losses"]]
        return cls(values["limit"], values["predicted"], losses)
