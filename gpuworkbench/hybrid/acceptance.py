"""How often jumps stood lately: the confidence where no dynamics model gives one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WINDOW = 20  # jumps


class AcceptanceRate:
    """Outcomes of the last jumps."""

    def __init__(self) -> None:
        self.outcomes: list[bool] = []

    def note(self, accepted: bool) -> None:
        """One more jump."""
        self.outcomes = [*self.outcomes[1 - WINDOW :], accepted]

    def revoke(self) -> None:
        """The last jump was undone after all."""
        if self.outcomes:
            self.outcomes[-1] = False

    def rate(self) -> float | None:
        """The share that stood; None before the first."""
        return sum(self.outcomes) / len(self.outcomes) if self.outcomes else None

    def values(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return {"outcomes": list(self.outcomes)}

    def load(self, values: Mapping[str, Any]) -> None:
        """Restore `values`."""
        self.outcomes = [bool(outcome) for outcome in values["outcomes"]]
