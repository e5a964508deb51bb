"""Themes of our own beside Textual's; `workbench-safe` keeps to colours that colour-blind people can tell apart."""

from __future__ import annotations

from textual.theme import Theme

DEFAULT_THEME = "workbench-dark"

THEMES = (
    Theme(
        name="workbench-dark",
        primary="#5ea1f2",
        secondary="#8f7fe8",
        accent="#4fc3b0",
        warning="#e8b04b",
        error="#ef6a6a",
        success="#69c07b",
        foreground="#d9dee6",
        background="#12151a",
        surface="#171b21",
        panel="#20262e",
        dark=True,
    ),
    Theme(
        name="workbench-light",
        primary="#1f5fbf",
        secondary="#6a4fc4",
        accent="#0f7f6f",
        warning="#a86500",
        error="#b3261e",
        success="#1f7a38",
        foreground="#1c2026",
        background="#fbfbf8",
        surface="#f2f2ee",
        panel="#e6e6e0",
        dark=False,
    ),
    # Okabe and Ito (2008): sky blue, reddish purple, bluish green, orange, vermillion, yellow.
    Theme(
        name="workbench-safe",
        primary="#56b4e9",
        secondary="#cc79a7",
        accent="#f0e442",
        warning="#e69f00",
        error="#d55e00",
        success="#009e73",
        foreground="#e6e6e6",
        background="#101214",
        surface="#16191c",
        panel="#22272b",
        dark=True,
    ),
    Theme(
        name="workbench-contrast",
        primary="#7fc8ff",
        secondary="#d0b0ff",
        accent="#80ffe0",
        warning="#ffd24a",
        error="#ff8080",
        success="#8cff9a",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#1a1a1a",
        dark=True,
    ),
)
