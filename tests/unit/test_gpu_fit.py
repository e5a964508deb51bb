"""Which device a run gets: every rule, and the one line of every refusal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError, ExitCode
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.fit import select_device

GIB = 1024**3
RTX5080 = Card(
    index=0, uuid="GPU-5080", name="RTX 5080", compute_capability=(12, 0), memory_total_bytes=int(15.9 * GIB)
)
RTX3060 = Card(index=0, uuid="GPU-3060", name="RTX 3060", compute_capability=(8, 6), memory_total_bytes=12 * GIB)
UNKNOWN = Card(index=0, uuid="GPU-x")
NEED = {"name": "RTX 5080", "compute_capability": "12.0", "memory_gib": 15.5}


def config(card: dict[str, Any] | None = None, *, is_cpu_twin: bool = False, **device: Any) -> RunConfig:
    values = {"schema_version": 1, "preset": "rtx5080_1b", "model": {"family": "gpt2"}, "device": device}
    values |= {"is_cpu_twin": is_cpu_twin} | ({} if card is None else {"card": card})
    return msgspec.convert(values, RunConfig)


def second(card: Card, index: int = 1) -> Card:
    return msgspec.structs.replace(card, index=index, uuid=f"{card.uuid}-{index}")


@pytest.mark.parametrize(
    ("run", "cards", "expected"),
    [
        (config(), [], ("cpu", None)),
        (config(), [RTX3060], ("cuda", "GPU-3060")),
        (config(), [UNKNOWN], ("cuda", "GPU-x")),
        (config(kind="cpu"), [RTX5080], ("cpu", None)),
        (config(NEED, kind="cpu"), [], ("cpu", None)),
        (config(NEED, is_cpu_twin=True), [], ("cpu", None)),
        (config(NEED, is_cpu_twin=True), [RTX5080], ("cpu", None)),
        (config(NEED), [RTX5080], ("cuda", "GPU-5080")),
        (config(NEED), [RTX3060, second(RTX5080)], ("cuda", "GPU-5080-1")),
        (config(kind="cuda"), [RTX3060], ("cuda", "GPU-3060")),
        (config(index=1), [RTX3060, second(RTX5080)], ("cuda", "GPU-5080-1")),
        (config(uuid="GPU-5080-1", index=0), [RTX3060, second(RTX5080)], ("cuda", "GPU-5080-1")),
        (config(NEED, memory_limit_gib=15.5), [RTX5080], ("cuda", "GPU-5080")),
        # the name says nothing: an unnamed card of that capability and memory will do
        (config(NEED), [msgspec.structs.replace(RTX5080, name=None)], ("cuda", "GPU-5080")),
    ],
)
def test_choices(run: RunConfig, cards: list[Card], expected: tuple[str, str | None]) -> None:
    choice = select_device(run, cards)
    assert (choice.kind, choice.uuid) == expected
    if choice.kind == "cuda":
        assert choice.card in cards
        assert choice.card is not None
        assert choice.index == choice.card.index


@pytest.mark.parametrize(
    ("run", "cards", "here"),
    [
        (config(NEED), [], "here: no CUDA card"),
        (config(NEED), [RTX3060], "here: RTX 3060 with compute capability 8.6 and 12.0 GiB"),
        (config(NEED), [second(RTX3060, 0), second(RTX3060)], "here: RTX 3060 with"),
        (config(NEED), [UNKNOWN], "here: a card with compute capability n/a and n/a"),
        (config(NEED, memory_limit_gib=8.0), [RTX5080], "and 8.0 GiB, capped by device.memory_limit_gib"),
        (config(NEED, index=0), [RTX3060, second(RTX5080)], "here: RTX 3060"),
        (config(NEED, kind="cuda"), [], "here: no CUDA card"),
        (config(NEED, index=3), [], "here: no CUDA card"),
    ],
)
def test_refusals_of_a_card_preset(run: RunConfig, cards: list[Card], here: str) -> None:
    with pytest.raises(DoesNotFitError) as caught:
        select_device(run, cards)
    line = caught.value.line()
    assert caught.value.exit_code == ExitCode.DOES_NOT_FIT
    assert line.startswith("preset rtx5080_1b needs a CUDA card with compute capability 12.0 and 15.5 GiB; ")
    assert here in line
    assert line.endswith("gpuworkbench --headless --preset rtx5080_1b --cpu-twin")


def test_cuda_without_a_card() -> None:
    with pytest.raises(DoesNotFitError, match="needs a CUDA card; here: no CUDA card"):
        select_device(config(kind="cuda"), [])


def test_the_command_can_be_pasted() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        select_device(config(NEED), [], preset_argument="my presets/a;b\x1b.toml")
    assert caught.value.line().endswith("--preset 'my presets/a;b␛.toml' --cpu-twin")


def test_a_stored_card_that_is_gone() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        select_device(config(uuid="GPU-old"), [RTX3060])
    line = caught.value.line()
    assert "GPU-old is not here; here: GPU-3060 (RTX 3060)" in line
    assert line.endswith("--set device.uuid=GPU-3060")
    with pytest.raises(DoesNotFitError, match="GPU-old is not here: no CUDA card"):
        select_device(config(uuid="GPU-old"), [])
    with pytest.raises(DoesNotFitError, match="needs a CUDA card with"):
        select_device(config(NEED, uuid="GPU-3060"), [RTX3060])


@pytest.mark.parametrize(
    ("run", "cards", "words"),
    [
        (config(index=1), [RTX3060], r"device\.index = 1 is not there: 1 CUDA card is visible"),
        (config(NEED, index=2), [RTX5080, second(RTX5080)], "2 CUDA cards are visible"),
        (config(index=0), [], "no CUDA card is here"),
        (config(kind="cpu", memory_limit_gib=8.0), [RTX5080], r"device\.memory_limit_gib"),
        (config(memory_limit_gib=8.0), [], r"device\.memory_limit_gib"),
    ],
)
def test_contradictions(run: RunConfig, cards: list[Card], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        select_device(run, cards)
