"""Host memory of predictor state and undo copies: exact bytes, pinned where the driver allows it, gone by reference."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gpuworkbench.config.storage import storage_bytes
from gpuworkbench.memory import host_arena
from gpuworkbench.memory.host_arena import ALIGNMENT, HostArena, HostMemory, HostPool
from gpuworkbench.plan.hybrid_bytes import hybrid_bytes
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.training import prediction
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, on_reaching

CARD = torch.device("cuda")


class Driver:
    """Stands for the CUDA runtime: what is registered, and the most of it at once; it refuses beyond a limit."""

    def __init__(self) -> None:
        self.limit_bytes: int | None = None
        self.now: dict[int, int] = {}  # address -> bytes
        self.sizes: list[int] = []  # of all requests, in order
        self.peak_bytes = 0

    def cudaHostRegister(self, pointer: int, num_bytes: int, flags: int) -> int:
        self.sizes.append(num_bytes)
        pages = {page for at, size in self.now.items() for page in pages_of(at, size)}
        if pages & set(pages_of(pointer, num_bytes)):
            return 712  # cudaErrorHostMemoryAlreadyRegistered
        if self.limit_bytes is not None and self.num_bytes + num_bytes > self.limit_bytes:
            return 2  # cudaErrorMemoryAllocation
        self.now[pointer] = num_bytes
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        ctypes.string_at(pointer, self.now.pop(pointer))  # it must not be unmapped yet
        return 0

    @property
    def num_bytes(self) -> int:
        return sum(self.now.values())


def pages_of(pointer: int, num_bytes: int) -> range:
    return range(pointer // mmap.PAGESIZE, -(-(pointer + num_bytes) // mmap.PAGESIZE))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A card's driver, and everything goes by reference counts alone."""
    fake = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: fake)
    monkeypatch.setattr(host_arena, "_forget_error", lambda: None)
    gc.disable()
    yield fake
    gc.enable()


@pytest.fixture
def beside_a_card(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Runs compute on the CPU, and their host memory is that of a machine with a card."""
    monkeypatch.setattr(prediction, "HostMemory", lambda _device, on_unpinned: HostMemory(CARD, on_unpinned))
    return driver


def tensors() -> dict[str, Tensor]:
    return {
        "matrix": torch.randn(300, 200).t(),
        "codes": torch.randint(-128, 127, (33,), dtype=torch.int8),
        "bf16": torch.randn(5, 3).bfloat16(),
        "step": torch.tensor(4.0),
        "none": torch.empty(0, 7),
    }


def size_of(live: dict[str, Tensor]) -> int:
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in live.values())


def filled(memory: HostMemory, live: dict[str, Tensor], again: str = "") -> dict[str, Tensor]:
    return {name: copy.copy_(live[name]) for name, copy in memory.like(live, again=again).items()}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_set_is_like_its_tensors_in_as_many_bytes(driver: Driver, device: str) -> None:
    live = tensors()
    copies = filled(HostMemory(torch.device(device)), live)
    for name, copy in copies.items():
        assert copy.is_contiguous()
        assert (copy.shape, copy.dtype) == (live[name].shape, live[name].dtype)
        assert torch.equal(copy, live[name])
    assert driver.sizes == ([size_of(live)] if device == "cuda" else [])
    as_fp32 = HostMemory(torch.device(device)).like(live, torch.float32)
    assert {copy.dtype for copy in as_fp32.values()} == {torch.float32}


def test_it_is_freed_with_the_last_tensor_of_the_set(driver: Driver) -> None:
    copies = filled(HostMemory(CARD), tensors())
    held = copies["matrix"].detach()[3:].numpy()
    del copies
    assert driver.num_bytes == size_of(tensors())
    del held
    assert driver.num_bytes == 0


def test_small_sets_share_no_page(driver: Driver) -> None:
    """A page that is registered cannot be registered again."""
    memory = HostMemory(CARD)
    sets = [memory.like({"small": torch.empty(10)}) for _ in range(20)]
    assert len(driver.now) == len(sets)


def test_pinned_memory_with_a_name_is_pinned_once(driver: Driver) -> None:
    memory, live = HostMemory(CARD), tensors()
    for value in range(3):
        copies = filled(memory, {name: torch.full_like(tensor, value) for name, tensor in live.items()}, "undo")
        assert float(copies["matrix"].mean()) == value
        del copies
    assert driver.sizes == [size_of(live)]
    assert driver.num_bytes == size_of(live)
    del memory
    assert driver.num_bytes == 0


def test_what_somebody_holds_is_not_written_to(driver: Driver) -> None:
    """A checkpoint's writer has the bytes, and may have them still when the next set of the name is made."""
    memory, live = HostMemory(CARD), tensors()
    copies = filled(memory, live, "undo")
    written = memoryview(copies["matrix"].detach().reshape(-1).view(torch.uint8).numpy().data)
    before = bytes(written)
    del copies
    zeros = {name: torch.zeros_like(tensor) for name, tensor in live.items()}
    copies = filled(memory, zeros, "undo")
    assert bytes(written) == before
    assert driver.num_bytes == 2 * size_of(live)
    del written
    assert driver.num_bytes == size_of(live)
    del copies
    filled(memory, zeros, "undo")
    assert len(driver.sizes) == 2


def test_another_size_takes_the_place_of_what_was_kept(driver: Driver) -> None:
    memory = HostMemory(CARD)
    memory.like({"a": torch.empty(1 << 12)}, again="undo")
    larger = memory.like({"a": torch.empty(1 << 13)}, again="undo")
    assert driver.num_bytes == driver.peak_bytes == larger["a"].nbytes


def test_a_refusal_is_told_once_and_nothing_is_pinned_after_it(driver: Driver) -> None:
    told: list[str] = []
    memory, live = HostMemory(CARD, lambda: told.append("refused")), tensors()
    driver.limit_bytes = size_of(live)
    sets = [filled(memory, live, again) for again in ("", "undo", "undo", "")]
    assert all(torch.equal(copies[name], live[name]) for copies in sets for name in live)
    assert told == ["refused"]
    assert driver.sizes == [size_of(live)] * 2
    del sets
    assert driver.num_bytes == 0


def test_a_pool_tells_of_a_refusal_once(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_arena, "CHUNK_BYTES", 4096)
    told: list[str] = []
    pool = HostPool(CARD, lambda: told.append("refused"))
    driver.limit_bytes = 0
    pool.hold()
    for _ in range(3):
        pool.take(4096)
    assert pool.num_bytes == 3 * 4096
    assert told == ["refused"]


def test_an_arena_of_nothing(driver: Driver) -> None:
    assert HostArena(0, torch.device("cpu")).take(0) is not None
    assert HostMemory(CARD).like({}) == {}


# In a run

STEPS = 20
SETS: dict[str, Any] = {
    # Of n_embd 128 every tensor is a multiple of 512 bytes: nothing is lost to ALIGNMENT but beside step counts.
    "model.n_layer": 1,
    "model.n_embd": 128,
    "hybrid.enabled": True,
    "hybrid.predictor": "ema_trend",
    "hybrid.corrector": True,
    "hybrid.ema_eval_decay": 0.9,
    "hybrid.state_device": "host",
    "hybrid.warmup_steps": 3,
    "hybrid.full_steps": 4,
    "hybrid.max_predict_steps": 2,
    "hybrid.correction_interval": 0,
    "hybrid.correct_steps": 2,
    "hybrid.exploration": 9,
    "hybrid.probe_sequences": 2,
    "train.max_steps": STEPS,
    "eval.interval_steps": 10,
    "checkpoint.interval_steps": 5,
}


def test_a_run_holds_what_the_plan_says(local: LocalRuns, beside_a_card: Driver) -> None:
    plain = local.trained("plain-1", {**SETS, "hybrid.state_device": "device"})
    paths = local.create("pinned-1", SETS)
    run: TrainingRun = local.open(paths)
    assert finish(run).exit_code == 0
    run.events.close()
    config = with_known_vocabulary(run.config)
    assert config is not None
    n_tensors = len(run.trainable)
    planned = hybrid_bytes(config, storage_bytes(config)).host
    assert beside_a_card.peak_bytes == planned + n_tensors * ALIGNMENT  # step counts
    assert len(local.events(paths, "prediction")) > 1
    assert len(beside_a_card.sizes) == 2 + 2 + 1 + 1  # predictor, shadow proposal, average, undo copies: once each
    assert not local.events(paths, "warning")
    assert final_tensors(paths, STEPS) == final_tensors(plain, STEPS)


@pytest.mark.parametrize("predictor", ["outer_nesterov", "subspace", "line_jump"])
def test_where_the_driver_refuses_a_run_goes_on_and_is_the_same(
    local: LocalRuns, beside_a_card: Driver, predictor: str
) -> None:
    sets = {**SETS, "hybrid.predictor": predictor, "hybrid.full_steps": 7, "hybrid.divergence_threshold": 0.5}
    name = predictor.replace("_", "-")
    pinned = local.trained(f"pinned-{name}", sets)
    assert local.events(pinned, "prediction")
    beside_a_card.limit_bytes = 0
    refused = local.trained(f"refused-{name}", sets)
    warnings = local.events(refused, "warning")
    assert [event["code"] for event in warnings] == ["not_pinned"]
    assert "pinned" in warnings[0]["message"]
    assert "docs/hybrid.md" in warnings[0]["hint"]
    assert final_tensors(refused, STEPS) == final_tensors(pinned, STEPS)


def test_a_refusal_while_a_checkpoint_is_restored_is_told_after_the_announcement(
    local: LocalRuns, beside_a_card: Driver
) -> None:
    """And between a jump and its judgement undo copies come back too."""
    sets = {**SETS, "hybrid.predictor": "null", "hybrid.corrector": False, "checkpoint.interval_steps": 1}
    whole = local.trained("whole-2", sets)
    beside_a_card.limit_bytes = 0
    cut = local.create("cut-2", sets)
    killed(local.open(cut), 8)
    run = local.open(cut)
    assert run.parts["hybrid_undo"].state().tensors
    assert finish(run).exit_code == 0
    run.events.close()
    events = local.events(cut)
    second = [event["type"] for event in events].index("run_resumed")
    codes = [[e["code"] for e in part if e["type"] == "warning"] for part in (events[:second], events[second:])]
    assert codes == [["not_pinned"]] * 2
    assert final_tensors(cut, STEPS) == final_tensors(whole, STEPS)


def test_a_checkpoint_still_being_written_has_the_copies_of_its_jump(local: LocalRuns, beside_a_card: Driver) -> None:
    """Its writer holds them while the next jump makes its own."""
    paths = local.create("held-3", {**SETS, "hybrid.predictor": "null", "hybrid.corrector": False})
    run = local.open(paths)
    seen: dict[str, Any] = {}

    def hold() -> None:
        tensors = run.parts["hybrid_undo"].state().tensors
        seen["held"] = {name: tensor.detach() for name, tensor in tensors.items()}
        seen["then"] = {name: tensor.clone() for name, tensor in tensors.items()}

    on_reaching(run, 8, hold)
    assert finish(run).exit_code == 0
    run.events.close()
    assert len(local.events(paths, "prediction")) > 1
    assert seen["held"]
    assert all(torch.equal(seen["held"][name], then) for name, then in seen["then"].items())
