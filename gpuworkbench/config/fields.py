"""What sections are made of: the documentation line and the limits of a field, on the field itself.

The launch form, error messages and the documentation of the keys all read them from here.
"""

from __future__ import annotations

from typing import Any

from msgspec import Meta, Struct

MAX_STEPS = 10**9
MAX_COUNT = 2**31 - 1  # rows, sequences, tokens: what one tensor dimension may have
MAX_SEED = 2**63 - 1
MAX_TOKENS = 10**15


def doc(text: str, **limits: Any) -> Meta:
    """A field annotation: one line of documentation and its limits (`ge`, `gt`, `le`, `lt`, ...)."""
    return Meta(description=text, **limits)


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section."""
