"""The memory cap of a simulated card, and which card a run gets, against torch's calls (no card is needed)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError
from gpuworkbench.plan.memory_fix import with_changes
from gpuworkbench.training.announce import environment
from gpuworkbench.training.device import CONTEXT_BYTES, set_up_device
from gpuworkbench.units import GIB
from tests.fixtures.local_run import torch_settings

TOTAL = 139 * GIB


class Cuda:
    """What torch.cuda would do with two cards of one kind."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fractions: list[tuple[float, torch.device]] = []
        self.device: torch.device | None = None
        cuda = torch.cuda
        patch.setattr(cuda, "is_available", lambda: True)
        patch.setattr(cuda, "device_count", lambda: 2)
        patch.setattr(cuda, "set_device", lambda device: setattr(self, "device", device))
        patch.setattr(cuda, "get_device_properties", self.properties)
        patch.setattr(cuda, "set_per_process_memory_fraction", lambda *call: self.fractions.append(call))

    @staticmethod
    def properties(device: torch.device | int) -> Any:
        index = device.index if isinstance(device, torch.device) else device
        return SimpleNamespace(name="NVIDIA H200", total_memory=TOTAL, uuid=f"aaaa-{index}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch_settings():
        yield Cuda(monkeypatch)


def config(**device: Any) -> RunConfig:
    made = configure(load_preset("rtx5080_gpt2_small_baseline"))
    changes = {f"device.{key}": value for key, value in device.items()}
    return with_changes(made, {"train.threads": 1, "train.mode": "fast", "device.kind": "cuda", **changes})


def test_the_allocator_is_capped_below_the_simulated_card_by_its_context(cuda: Cuda) -> None:
    device = set_up_device(config(memory_limit_gib=16))
    assert device == (torch.device("cuda", 0), "NVIDIA H200", "simulated card, 16 GiB", 16 * GIB)
    ((fraction, capped),) = cuda.fractions
    assert capped == torch.device("cuda", 0)
    assert fraction * TOTAL == pytest.approx(16 * GIB - CONTEXT_BYTES)


def test_without_a_limit_nothing_is_capped_or_simulated(cuda: Cuda) -> None:
    device = set_up_device(config())
    assert (device.simulated_card, device.limit_bytes, cuda.fractions) == (None, TOTAL, [])


def test_a_limit_above_the_card_is_refused(cuda: Cuda) -> None:
    with pytest.raises(ConfigError, match=r"device\.memory_limit_gib = 140: the card has 139\.0 GiB"):
        set_up_device(config(memory_limit_gib=140))


@pytest.mark.parametrize(("uuid", "index"), [("GPU-aaaa-1", 1), ("aaaa-0", 0), (None, 0)])
def test_a_run_gets_the_card_it_was_made_for(cuda: Cuda, uuid: str | None, index: int) -> None:
    assert set_up_device(config(uuid=uuid)).torch_device == torch.device("cuda", index)


def test_a_build_without_cuda_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch_settings(), pytest.raises(DoesNotFitError, match="sees no CUDA device"):
        set_up_device(config())


def test_env_json_and_the_first_event_carry_it(cuda: Cuda) -> None:
    run: Any = SimpleNamespace(
        device=set_up_device(config(memory_limit_gib=24)),
        config=config(memory_limit_gib=24),
        precisions=SimpleNamespace(current=SimpleNamespace(name="bf16"), describe=lambda _: {}),
    )
    assert environment(run)["simulated_card"] == "simulated card, 24 GiB"
