"""One card as a frozen value. A field that NVML does not support on it is None, never 0."""

from __future__ import annotations

from msgspec import Struct


class Card(Struct, frozen=True, kw_only=True):
    """A card, or a MIG instance of one. `index` counts the visible cards, as CUDA_VISIBLE_DEVICES leaves them."""

    index: int
    uuid: str | None = None
    name: str | None = None
    compute_capability: tuple[int, int] | None = None
    driver_version: str | None = None
    cuda_driver_version: tuple[int, int] | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    desktop_memory_bytes: int | None = None  # held by processes that draw (compositor, browser)
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    temperature_c: int | None = None
    fan_percent: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None  # empty: nothing holds the clocks back
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    is_mig: bool = False

    @property
    def capability_text(self) -> str | None:
        """`(12, 0)` as `12.0`."""
        return None if self.compute_capability is None else "{}.{}".format(*self.compute_capability)
