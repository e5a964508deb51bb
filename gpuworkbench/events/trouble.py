"""Something that fails again and again: told when it begins, when its reason changes, and when it is over."""

from __future__ import annotations


class Trouble:
    """Counts failures in a row."""

    def __init__(self) -> None:
        self.count = 0
        self.reason = ""

    def begins(self, reason: str) -> bool:
        """Note a failure; whether it is the first in a row, or has another reason than the one before."""
        is_news = not self.count or reason != self.reason
        self.count, self.reason = self.count + 1, reason
        return is_news

    def ends(self) -> int:
        """Note a success; how many failures came before it."""
        count, self.count, self.reason = self.count, 0, ""
        return count
