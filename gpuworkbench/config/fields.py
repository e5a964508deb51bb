"""Field types that carry their own range and one line of documentation.

The documentation line is what the launch form, `presets` and an error message show, so it lives on the field.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta


def doc(text: str, **limits: Any) -> Meta:
    """A field annotation: one line of documentation and its limits (`ge`, `gt`, `le`, `lt`, ...)."""
    return Meta(description=text, **limits)


Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0.0)]
NonNegativeFloat = Annotated[float, Meta(ge=0.0)]
