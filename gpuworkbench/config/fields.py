"""The documentation line and the limits of a field, on the field itself.

The launch form, error messages and the documentation of the keys all read them from here.
"""

from __future__ import annotations

from typing import Any

from msgspec import Meta


def doc(text: str, **limits: Any) -> Meta:
    """A field annotation: one line of documentation and its limits (`ge`, `gt`, `le`, `lt`, ...)."""
    return Meta(description=text, **limits)
