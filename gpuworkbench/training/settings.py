"""What may change while a run is going: a whitelist of keys, kept in the checkpoint so that a resume keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuworkbench.config.live_keys import LR_SCALE, checked, configured_values
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError
from gpuworkbench.parts import Part

__all__ = ["LR_SCALE", "LiveSettings"]


@dataclass
class LiveSettings:
    """Intervals in steps (0: off) and a factor on the scheduled learning rate.

    An override holds until the key is configured anew: what a person writes at a resume counts more than what they
    changed in passing before.
    """

    values: dict[str, float]
    overridden: dict[str, float]

    version = 1

    @classmethod
    def of(cls, config: RunConfig) -> LiveSettings:
        """The configured values, nothing overridden."""
        return cls(configured_values(config), {})

    def __getitem__(self, key: str) -> float:
        return self.overridden.get(key, self.values[key])

    def change(self, key: str, value: Any) -> tuple[float, float]:
        """Override `key` from now on; returns (old, new). Raises ConfigError."""
        if key not in self.values:
            raise ConfigError(f"{key!r} cannot change while a run is going", f"choices: {', '.join(self.values)}")
        old = self[key]
        self.overridden[key] = checked(key, value)
        return old, self.overridden[key]

    def state(self) -> Part:
        """Each override with the configured value that it overrides; that value itself comes from the run file."""
        return Part(values={key: [value, self.values[key]] for key, value in self.overridden.items()})

    def load(self, part: Part) -> None:
        """Restore the overrides of keys that are configured as they were. Raises ConfigError, ValueError."""
        self.overridden = {}
        for key, (value, configured) in part.values.items():
            if self.values.get(key) == configured:
                self.overridden[key] = checked(key, value)
