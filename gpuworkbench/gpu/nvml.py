"""Cards through NVML (module `pynvml` of the package nvidia-ml-py). Every call may fail alone: then its field is None.

NVML counts cards in PCI order. CUDA's own order is "fastest first" unless CUDA_DEVICE_ORDER=PCI_BUS_ID, so on mixed
machines only the UUID names a card for certain; that is what runs store.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.visible import VARIABLE, visible

RETRY_S = 5.0  # between two attempts to find NVML again after it was lost

# Bits of nvmlClocksEventReasons that mean "slower than it could be" (nvml.h).
_THROTTLE_BITS: Mapping[int, str] = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class _Device(NamedTuple):
    """A handle with what does not change."""

    handle: Any
    parent: Any  # the card a MIG instance is part of, else the same handle
    facts: Card


class Sampler:
    """Live readings. NVML stays initialised between them; a card or driver that vanishes gives None fields."""

    def __init__(
        self,
        nvml: Any | None = None,
        environ: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`nvml` is the pynvml module or a stand-in (default: the module, if it can be imported)."""
        self._nvml: Any = _import_pynvml() if nvml is None else nvml
        self._environ = os.environ if environ is None else environ
        self._monotonic = monotonic
        self._devices: list[_Device] = []
        self._is_open = False
        self._retry_at: float | None = None
        self._open()

    def sample(self) -> list[Card]:
        """The visible cards now; never raises. Without NVML the list is empty."""
        if not self._is_open and self._retry_at is not None and self._monotonic() >= self._retry_at:
            self._open()
        if not self._is_open:
            return [device.facts for device in self._devices]
        cards = [_read(self._nvml, device) for device in self._devices]
        if cards and all(card == device.facts for card, device in zip(cards, self._devices, strict=True)):
            self._lose()
        return cards

    def close(self) -> None:
        """Let NVML go."""
        if self._is_open:
            _try(self._nvml.nvmlShutdown)
        self._is_open = False
        self._retry_at = None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlInit()
        except Exception:  # noqa: BLE001  NVMLError is a class of the optional module
            self._retry_at = self._monotonic() + RETRY_S
            return
        self._is_open = True
        found = _find(self._nvml, self._environ.get(VARIABLE))
        # Cards that were there and cannot be found again stay in the list, with their facts only.
        if found or not self._devices:
            self._devices = found
        else:
            self._lose()

    def _lose(self) -> None:
        """No reading came back: the driver was unloaded or the card fell off the bus."""
        self.close()
        self._retry_at = self._monotonic() + RETRY_S


def probe_cards(nvml: Any | None = None, environ: Mapping[str, str] | None = None) -> list[Card]:
    """The visible cards with one reading each; empty without NVML, a driver or a card. Never raises."""
    with Sampler(nvml, environ) as sampler:
        return sampler.sample()


def _import_pynvml() -> Any | None:
    try:
        return importlib.import_module("pynvml")
    except Exception:  # noqa: BLE001  a broken installation is the same as none
        return None


def _try(function: Callable[..., Any], *arguments: Any) -> Any | None:
    """The call's result, or None for anything that NVML does not support, has lost or does not know."""
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001  NVMLError, FunctionNotFound, AttributeError of older modules
        return None


def _call(nvml: Any, name: str, *arguments: Any) -> Any | None:
    function = getattr(nvml, name, None)
    return None if function is None else _try(function, *arguments)


def _find(nvml: Any, visible_devices: str | None) -> list[_Device]:
    """Handles and lasting facts of the visible cards and MIG instances."""
    count = _int(_call(nvml, "nvmlDeviceGetCount")) or 0
    candidates = (_call(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(count))
    handles = [handle for handle in candidates if handle is not None]
    common = {
        "driver_version": _text(_call(nvml, "nvmlSystemGetDriverVersion")),
        "cuda_driver_version": _cuda_version(_int(_call(nvml, "nvmlSystemGetCudaDriverVersion"))),
    }
    whole, instances = [], []
    for handle in handles:
        parts = [_facts(nvml, part, handle, common, is_mig=True) for part in _mig_instances(nvml, handle)]
        # Without a choice, CUDA uses the first instance of a card that is split.
        whole.append(parts[0] if parts else _facts(nvml, handle, handle, common, is_mig=False))
        instances.extend(parts)
    seen = {device.facts.uuid for device in whole}
    pool = whole + [part for part in instances if part.facts.uuid not in seen]
    chosen = visible(pool, lambda device: device.facts.uuid, visible_devices, whole_cards=len(whole))
    return [
        device._replace(facts=msgspec.structs.replace(device.facts, index=index)) for index, device in enumerate(chosen)
    ]


def _mig_instances(nvml: Any, handle: Any) -> list[Any]:
    mode = _call(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or mode[0] != 1:
        return []
    count = _int(_call(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle)) or 0
    parts = (_call(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index) for index in range(count))
    return [part for part in parts if part is not None]


def _facts(nvml: Any, handle: Any, parent: Any, common: Mapping[str, Any], *, is_mig: bool) -> _Device:
    memory = _call(nvml, "nvmlDeviceGetMemoryInfo", handle)
    capability = _call(nvml, "nvmlDeviceGetCudaComputeCapability", parent)
    facts = Card(
        index=0,
        uuid=_text(_call(nvml, "nvmlDeviceGetUUID", handle)),
        name=_text(_call(nvml, "nvmlDeviceGetName", handle)) or _text(_call(nvml, "nvmlDeviceGetName", parent)),
        compute_capability=None if capability is None else (int(capability[0]), int(capability[1])),
        memory_total_bytes=_int(getattr(memory, "total", None)),
        sm_clock_max_mhz=_int(_call(nvml, "nvmlDeviceGetMaxClockInfo", parent, getattr(nvml, "NVML_CLOCK_SM", 1))),
        pcie_generation_max=_int(_call(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", parent)),
        pcie_width_max=_int(_call(nvml, "nvmlDeviceGetMaxPcieLinkWidth", parent)),
        power_limit_w=_watts(_call(nvml, "nvmlDeviceGetEnforcedPowerLimit", parent)),
        is_mig=is_mig,
        **common,
    )
    return _Device(handle, parent, facts)


def _read(nvml: Any, device: _Device) -> Card:
    """The device's facts with one reading of everything that changes."""
    handle, parent = device.handle, device.parent
    memory = _call(nvml, "nvmlDeviceGetMemoryInfo", handle)
    rates = _call(nvml, "nvmlDeviceGetUtilizationRates", handle)
    limit_w = _watts(_call(nvml, "nvmlDeviceGetEnforcedPowerLimit", parent))
    return msgspec.structs.replace(
        device.facts,
        memory_used_bytes=_int(getattr(memory, "used", None)),
        memory_free_bytes=_int(getattr(memory, "free", None)),
        desktop_memory_bytes=_desktop_bytes(_call(nvml, "nvmlDeviceGetGraphicsRunningProcesses", handle)),
        utilization_percent=_int(getattr(rates, "gpu", None)),
        memory_utilization_percent=_int(getattr(rates, "memory", None)),
        temperature_c=_temperature(nvml, parent),
        fan_percent=_int(_call(nvml, "nvmlDeviceGetFanSpeed", parent)),
        power_w=_watts(_call(nvml, "nvmlDeviceGetPowerUsage", parent)),
        power_limit_w=device.facts.power_limit_w if limit_w is None else limit_w,
        sm_clock_mhz=_int(_call(nvml, "nvmlDeviceGetClockInfo", parent, getattr(nvml, "NVML_CLOCK_SM", 1))),
        throttle_reasons=_throttle(nvml, parent),
        pcie_generation=_int(_call(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", parent)),
        pcie_width=_int(_call(nvml, "nvmlDeviceGetCurrPcieLinkWidth", parent)),
    )


def _temperature(nvml: Any, handle: Any) -> int | None:
    """nvmlDeviceGetTemperatureV where there is one, else its deprecated forerunner."""
    sensor = getattr(nvml, "NVML_TEMPERATURE_GPU", 0)
    value = _int(_call(nvml, "nvmlDeviceGetTemperatureV", handle, sensor))
    return _int(_call(nvml, "nvmlDeviceGetTemperature", handle, sensor)) if value is None else value


def _throttle(nvml: Any, handle: Any) -> tuple[str, ...] | None:
    bits = _int(_call(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle))
    if bits is None:
        bits = _int(_call(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle))
    return None if bits is None else tuple(name for bit, name in _THROTTLE_BITS.items() if bits & bit)


def _desktop_bytes(processes: Any) -> int | None:
    """Memory of the drawing processes together; None where the driver keeps one of the numbers back (WSL does)."""
    if processes is None:
        return None
    used = [_int(getattr(process, "usedGpuMemory", None)) for process in processes]
    known = [value for value in used if value is not None]
    return sum(known) if len(known) == len(used) else None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _watts(milliwatts: Any) -> float | None:
    value = _int(milliwatts)
    return None if value is None else value / 1000


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and value else None


def _cuda_version(value: int | None) -> tuple[int, int] | None:
    """`13010` -> `(13, 1)`."""
    return None if value is None else (value // 1000, value % 1000 // 10)
