"""What a family says about its published form: which keys its config.json has and what its tensors are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class TensorRule(NamedTuple):
    """One tensor in both worlds.

    Where the published one has fewer rows than ours, the rest of ours is padding and stays 0.
    """

    ours: str  # name of the parameter
    published: str  # name in the file, without the family's prefix
    shape: tuple[int, ...]  # in the file
    is_transposed: bool = False  # the file holds the transpose of ours
    is_copy: bool = False  # a second name of a tied tensor: may be absent, must be equal where it is there


class PublishedSize(NamedTuple):
    """A size that config.json decides."""

    key: str  # of our [model] section
    published: str  # its key in config.json
    value: int


class Layout(Protocol):
    """A family's published form. The registry names one for each family that has any."""

    model_type: str  # of config.json
    prefix: str  # that names may have in a file, as in "transformer.wte.weight"

    def sizes(self, published: Mapping[str, Any]) -> list[PublishedSize]:
        """The sizes in a parsed config.json.

        Raises ValueError saying which key holds something that this family cannot compute.
        """
        ...

    def tensors(self, model_config: Any) -> list[TensorRule]:
        """Every tensor of the published form, those that may be absent too."""
        ...

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor of that name (without prefix) is a buffer that the model computes itself."""
        ...

    def config_json(self, model_config: Any, *, dtype: str, eot_id: int | None) -> dict[str, Any]:
        """The config.json that describes `model_config`, with weights in `dtype` ("float32", ...)."""
        ...


def published_int(published: Mapping[str, Any], names: Sequence[str], default: int) -> tuple[str, int]:
    """The key and value of the first of `names` that is there, else the default under the first name.

    Raises ValueError where it is no positive whole number, or two of the names disagree.
    """
    found = [(name, published[name]) for name in names if published.get(name) is not None]
    for name, value in found:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is not a positive whole number")
        if value != found[0][1]:
            raise ValueError(f"{found[0][0]} = {found[0][1]}, but {name} = {value}")
    return found[0] if found else (names[0], default)
