"""Several optimizers, each with parameters of its own, as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch


class Combined(torch.optim.Optimizer):
    """Steps each of `optimizers` in turn. Groups and state are theirs and its own at once: the same objects."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for each in optimizers for group in each.param_groups], {})
        self.optimizers = optimizers
        self.param_groups = [group for each in optimizers for group in each.param_groups]
        self.state = defaultdict(dict)
        for each in optimizers:
            each.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is torch's interface and is not used."""
        for each in self.optimizers:
            each.step()
