"""Cards through a stand-in for NVML: every field, every failure, visibility, and loss while sampling."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.nvml import RETRY_S, Sampler, probe_cards
from gpuworkbench.gpu.visible import visible
from tests.fixtures.fake_nvml import GIB, FakeNvml, NVMLError, rtx5080

A = "GPU-aaaa1111-0000-0000-0000-000000000000"
B = "GPU-bbbb2222-0000-0000-0000-000000000000"
C = "GPU-cccc3333-0000-0000-0000-000000000000"


def three_cards() -> FakeNvml:
    return FakeNvml(*(rtx5080(nvmlDeviceGetUUID=uuid) for uuid in (A, B, C)))


def uuids(nvml: FakeNvml, value: str | None) -> list[str | None]:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    return [card.uuid for card in probe_cards(nvml, environ)]


def test_every_field() -> None:
    nvml = FakeNvml(rtx5080(nvmlDeviceGetCurrentClocksEventReasons=0x01 | 0x04 | 0x40))
    (card,) = probe_cards(nvml, {})
    assert card == Card(
        index=0,
        uuid=A,
        name="NVIDIA GeForce RTX 5080",
        compute_capability=(12, 0),
        driver_version="570.124.04",
        cuda_driver_version=(12, 8),
        memory_total_bytes=16 * GIB,
        memory_used_bytes=2 * GIB,
        memory_free_bytes=14 * GIB,
        desktop_memory_bytes=500 * 1024**2,
        utilization_percent=37,
        memory_utilization_percent=12,
        temperature_c=61,
        fan_percent=40,
        power_w=250.5,
        power_limit_w=360.0,
        sm_clock_mhz=2400,
        sm_clock_max_mhz=3090,
        throttle_reasons=("power limit", "hardware thermal slowdown"),
        pcie_generation=4,
        pcie_generation_max=5,
        pcie_width=16,
        pcie_width_max=16,
    )
    assert card.capability_text == "12.0"
    assert None not in msgspec.structs.astuple(card)
    assert (nvml.inits, nvml.shutdowns) == (1, 1)


@pytest.mark.parametrize("name", list(rtx5080()))
@pytest.mark.parametrize("failure", [NVMLError("Not Supported"), AttributeError("old module"), OSError("gone")])
def test_each_call_may_fail_alone(name: str, failure: Exception) -> None:
    (whole,) = probe_cards(FakeNvml(rtx5080()), {})
    (card,) = probe_cards(FakeNvml(rtx5080(**{name: failure})), {})
    changed = {field for field in card.__struct_fields__ if getattr(card, field) != getattr(whole, field)}
    assert all(getattr(card, field) is None for field in changed)
    assert (len(changed) == 0) == (name == "nvmlDeviceGetMigMode")
    assert len(changed) <= 3


def test_unsupported_is_none_never_zero() -> None:
    (card,) = probe_cards(FakeNvml({}), {})
    known = {field for field in card.__struct_fields__ if getattr(card, field) is not None}
    assert known == {"index", "is_mig", "driver_version", "cuda_driver_version"}


def test_older_modules() -> None:
    readings = rtx5080(
        nvmlDeviceGetName=b"Tesla T4",
        nvmlDeviceGetTemperatureV=NVMLError("Function Not Found"),
        nvmlDeviceGetTemperature=55,
        nvmlDeviceGetCurrentClocksEventReasons=NVMLError("Function Not Found"),
        nvmlDeviceGetCurrentClocksThrottleReasons=0x20,
        nvmlDeviceGetGraphicsRunningProcesses=[SimpleNamespace(usedGpuMemory=None)],  # WSL keeps it back
    )
    (card,) = probe_cards(FakeNvml(readings), {})
    assert (card.name, card.temperature_c, card.throttle_reasons) == ("Tesla T4", 55, ("software thermal slowdown",))
    assert card.desktop_memory_bytes is None
    assert probe_cards(FakeNvml(rtx5080(nvmlDeviceGetGraphicsRunningProcesses=[])), {})[0].desktop_memory_bytes == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [A, B, C]),
        ("", []),
        ("0,1,2", [A, B, C]),
        ("2,0", [C, A]),
        (" 1 , 2", [B, C]),
        ("-1", []),
        ("1,-1,2", [B]),
        ("0,7,1", [A]),
        ("NoDevFiles", []),
        ("0,0", []),
        (B, [B]),
        ("GPU-bbbb", [B]),
        (f"{C},GPU-a", [C, A]),
        ("GPU-dddd", []),
        ("GPU-", []),  # not unique
        ("0,GPU-dddd,1", [A]),
        ("\x1b[31m", []),
        ("9" * 100, []),
    ],
)
def test_cuda_visible_devices(value: str | None, expected: list[str]) -> None:
    assert uuids(three_cards(), value) == expected


def test_indices_count_the_visible_cards() -> None:
    assert [(card.index, card.uuid) for card in probe_cards(three_cards(), {"CUDA_VISIBLE_DEVICES": "2,1"})] == [
        (0, C),
        (1, B),
    ]


@given(st.text(alphabet="0123456789,-GPUMIGab ", max_size=30))
def test_visibility_never_invents_or_repeats(value: str) -> None:
    found = visible([A, B, C], lambda uuid: uuid, value)
    assert len(found) == len(set(found))
    assert set(found) <= {A, B, C}


def test_mig_instances() -> None:
    parts = [
        {"nvmlDeviceGetUUID": f"MIG-{n}", "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=n * GIB)} for n in (5, 10)
    ]
    split = rtx5080(nvmlDeviceGetMigMode=(1, 1), nvmlDeviceGetCudaComputeCapability=(9, 0))
    nvml = FakeNvml(split, mig={0: parts})
    (card,) = probe_cards(nvml, {})
    assert (card.uuid, card.memory_total_bytes, card.compute_capability, card.is_mig) == (
        "MIG-5",
        5 * GIB,
        (9, 0),
        True,
    )
    (card,) = probe_cards(nvml, {"CUDA_VISIBLE_DEVICES": "MIG-10"})
    assert (card.uuid, card.memory_total_bytes, card.index) == ("MIG-10", 10 * GIB, 0)
    assert uuids(nvml, "1") == []


def test_no_nvml_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # import fails
    assert probe_cards(environ={}) == []
    dead = FakeNvml(rtx5080())
    dead.is_dead = True
    assert probe_cards(dead, {}) == []
    assert probe_cards(FakeNvml(), {}) == []


def test_a_broken_installation_is_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)

    def broken(name: str, *arguments: object) -> object:
        if name == "pynvml":
            raise SyntaxError("truncated file")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", broken)
    monkeypatch.setattr("importlib.import_module", broken)
    assert probe_cards(environ={}) == []


def test_loss_in_the_middle_and_return() -> None:
    clock = [0.0]
    nvml = FakeNvml(rtx5080())
    sampler = Sampler(nvml, {}, lambda: clock[0])
    assert sampler.sample()[0].utilization_percent == 37
    assert nvml.inits == 1
    nvml.is_dead = True
    for _ in range(3):
        (lost,) = sampler.sample()
        assert (lost.name, lost.utilization_percent, lost.memory_used_bytes) == ("NVIDIA GeForce RTX 5080", None, None)
        clock[0] += 1.0
    nvml.is_dead = False
    assert sampler.sample()[0].utilization_percent is None  # not asked again before RETRY_S
    clock[0] += RETRY_S
    assert sampler.sample()[0].utilization_percent == 37
    assert nvml.inits == 2
    sampler.close()
    sampler.close()
    assert nvml.shutdowns == 2
    clock[0] += 100 * RETRY_S
    assert sampler.sample()[0].utilization_percent is None  # closed is closed


def test_cards_that_do_not_come_back_stay_with_their_facts() -> None:
    clock = [0.0]
    nvml = FakeNvml(rtx5080())
    sampler = Sampler(nvml, {}, lambda: clock[0])
    card = nvml.cards[0]
    nvml.is_dead = True
    sampler.sample()
    nvml.is_dead, nvml.cards = False, []
    clock[0] += RETRY_S
    assert sampler.sample()[0].name == "NVIDIA GeForce RTX 5080"
    nvml.cards = [card]
    clock[0] += RETRY_S
    assert sampler.sample()[0].utilization_percent == 37


def test_the_real_module_never_raises() -> None:
    with Sampler() as sampler:
        cards = sampler.sample()
    assert all(isinstance(card, Card) for card in cards)
