"""Activation offload: gradients bit for bit those of the plain pass, memory as promised, and nothing read too early."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.errors import ConfigError
from gpuworkbench.memory import host_arena
from gpuworkbench.memory.activation_checkpointing import ActivationCheckpointing
from gpuworkbench.memory.activation_offload import ActivationOffload
from gpuworkbench.memory.strategy import StrategyContext
from gpuworkbench.memory.tensor_bytes import TensorBytes
from gpuworkbench.memory.transfer import Copies, Mover, Transfer
from gpuworkbench.models.base import plain_block_call
from gpuworkbench.models.gpt2 import Gpt2
from gpuworkbench.training.attempt import finish
from tests.fixtures.local_run import LocalRuns, final_tensors

TOKENS = torch.randint(192, (4, 64), generator=torch.Generator().manual_seed(1))


def model_of(n_layer: int = 4, dropout: float = 0.0) -> Gpt2:
    config = Gpt2Config(n_layer=n_layer, n_head=2, n_embd=96, seq_len=64, vocab_size=192, dropout=dropout)
    model = Gpt2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def offload(model: Gpt2, checkpointing: str = "") -> tuple[ActivationOffload, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    if checkpointing:
        ActivationCheckpointing(checkpointing, 2).apply(model)
    strategy = ActivationOffload()
    strategy.apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    device = torch.device("cpu")
    strategy.attach(StrategyContext(model, optimizer, device, lambda kind, **fields: told.append(fields), lambda: 3))
    strategy.enter_phase("full", None)
    return strategy, told


def gradients(model: Gpt2, *, bf16: bool = False, passes: int = 1) -> list[Tensor]:
    torch.manual_seed(5)
    for _ in range(passes):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(TOKENS, TOKENS)
        loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("checkpointing", ["", "all", "selective"])
@pytest.mark.parametrize(("dropout", "bf16"), [(0.0, False), (0.2, True)])
def test_gradients_are_those_of_the_plain_pass(checkpointing: str, dropout: float, bf16: bool) -> None:
    expected = gradients(model_of(dropout=dropout), bf16=bf16, passes=2)
    model = model_of(dropout=dropout)
    strategy, _ = offload(model, checkpointing)
    found = gradients(model, bf16=bf16, passes=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert strategy.pool.num_bytes > 0


@pytest.fixture
def exact_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host memory grows by what is asked for, so that it tells how much that is."""
    monkeypatch.setattr(host_arena, "CHUNK_BYTES", 1)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What goes, goes by reference counts alone."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("exact_chunks", "no_collector")
@pytest.mark.parametrize("checkpointing", ["", "all", "every_n", "selective"])
@pytest.mark.parametrize("bf16", [False, True])
def test_micro_batches_of_a_step_take_the_host_memory_of_one(checkpointing: str, bf16: bool) -> None:
    taken = []
    for passes in (1, 2, 8):
        model = model_of(dropout=0.1)
        strategy, _ = offload(model, checkpointing)
        gradients(model, bf16=bf16, passes=passes)
        taken.append(strategy.pool.num_bytes)
    assert taken == [taken[0]] * 3
    assert taken[0] > 0


@pytest.mark.usefixtures("exact_chunks", "no_collector")
def test_a_pass_whose_backward_is_still_to_come_keeps_its_host_memory() -> None:
    """The next one takes its own, and so does a validation between them nothing."""
    plain = model_of()
    sum(plain(TOKENS.roll(shift), TOKENS) for shift in range(3)).backward()  # type: ignore[union-attr]
    model = model_of()
    strategy, _ = offload(model)
    losses, taken = [], []
    for shift in range(3):
        losses.append(model(TOKENS.roll(shift), TOKENS))
        taken.append(strategy.pool.num_bytes)
        with torch.no_grad():
            model(TOKENS, TOKENS)
    assert taken == [taken[0], 2 * taken[0], 3 * taken[0]]
    sum(losses).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    model(TOKENS, TOKENS).backward()
    assert strategy.pool.num_bytes == taken[-1], "all of it is free again"


@pytest.mark.usefixtures("exact_chunks", "no_collector")
def test_a_pass_that_is_given_up_writes_into_no_other_ones_host_memory() -> None:
    """Its copies may still be under way when the next pass begins."""
    expected = gradients(model_of())
    model = model_of()
    strategy, _ = offload(model)
    slow = SlowMover(torch.device("cpu"))
    strategy._mover = slow
    inner, strategy.inner = strategy.inner, fails_at_layer_1
    with contextlib.suppress(RuntimeError):
        model(TOKENS.roll(1), TOKENS)
    taken = strategy.pool.num_bytes
    strategy.inner, slow.seconds = inner, 0.0
    torch.manual_seed(5)
    loss = model(TOKENS, TOKENS)
    time.sleep(2 * SlowMover.seconds)
    loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert strategy.pool.num_bytes == 3 * taken, "all blocks but the last, the first of them where it was before"


class SlowMover(Mover):
    """Copies that take their time."""

    seconds = 0.3

    def start(self, copies: Copies) -> Transfer:
        return super().start(Late(copies, self.seconds))  # type: ignore[arg-type]


class Late:
    """Pairs to copy that come after a while."""

    def __init__(self, copies: Copies, seconds: float) -> None:
        self.copies, self.seconds = copies, seconds

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        time.sleep(self.seconds)
        return iter(self.copies)


def fails_at_layer_1(layer: int, block: torch.nn.Module, x: Tensor) -> Tensor:
    if layer == 1:
        raise RuntimeError("given up")
    return plain_block_call(layer, block, x)


def test_what_it_moves_is_what_the_formula_says() -> None:
    """All blocks but the last, in fp32: what a block keeps, its weights not among it."""
    model = model_of(5)
    strategy, told = offload(model)
    gradients(model)
    strategy.before_update()
    strategy.after_step()
    config = model.config
    blocks = config.saved_bytes_per_token(4) - config.n_embd * 8
    predicted = TOKENS.numel() * blocks * 4 // 5
    assert [(event["op"], event["target"], event["step"], event["phase"]) for event in told] == [
        ("offload", "activations", 4, "full"),
        ("restore", "activations", 4, "full"),
    ]
    for event in told:
        assert event["num_bytes"] == pytest.approx(predicted, rel=0.02)
        assert event["duration_s"] >= event["overlapped_s"] >= 0
    assert [event["freed_bytes"] for event in told] == [told[0]["num_bytes"], 0]


def test_autocast_copies_of_weights_are_not_moved() -> None:
    model = model_of(5)
    strategy, told = offload(model)
    gradients(model, bf16=True)
    strategy.after_step()
    config = model.config
    blocks = config.saved_bytes_per_token(2) - config.n_embd * 6
    assert told[0]["num_bytes"] == pytest.approx(TOKENS.numel() * blocks * 4 / 5, rel=0.02)


def kept_and_peak(model: Gpt2) -> tuple[int, int]:
    with TensorBytes() as recording:
        hidden = model.hidden(TOKENS)
        recording.mark("backward")
        hidden.sum().backward()
    kept = next(change.num_bytes for change in recording.changes if change.label == "backward")
    return kept, max(recording.peaks().values())


def test_two_blocks_at_a_time_are_on_the_device() -> None:
    plain_kept, plain_peak = kept_and_peak(model_of(10))
    model = model_of(10)
    offload(model)
    kept, peak = kept_and_peak(model)
    assert kept < 0.25 * plain_kept
    assert peak < 0.6 * plain_peak  # the gradients of all weights are there at the end


def test_what_has_left_is_poisoned() -> None:
    """A tensor that somebody still reads on the device would be seen: it is NaN once the copy is made."""
    model = model_of()
    strategy, _ = offload(model)
    seen: list[Tensor] = []
    strategy.start, start = (lambda op, copies: seen.extend(s for _, s in copies) or start(op, copies)), strategy.start  # type: ignore[method-assign,func-returns-value]
    model(TOKENS, TOKENS)
    addresses = {tensor.data_ptr() for tensor in seen}
    assert len(addresses) > 10
    poisoned = [tensor for tensor in seen if bool(torch.isnan(tensor.view(torch.float32)).all())]
    assert len(seen) - len(poisoned) == 3, "the residual stream between blocks is in use for longer"


def test_the_graph_can_be_gone_through_twice() -> None:
    expected = gradients(model_of())
    model = model_of()
    offload(model)
    loss = model(TOKENS, TOKENS)
    loss.backward(retain_graph=True)
    model.zero_grad()
    loss.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True) if p.grad is not None)


def test_without_gradients_nothing_moves() -> None:
    model = model_of()
    strategy, told = offload(model)
    with torch.no_grad():
        assert torch.equal(model(TOKENS, TOKENS), model_of()(TOKENS, TOKENS))
    strategy.after_step()
    assert told == []
    assert strategy.pool.num_bytes == 0


def test_a_run_is_the_same_bit_for_bit(local: LocalRuns) -> None:
    sets = {"train.max_steps": 4, "model.seq_len": 64, "model.n_layer": 3}
    plain = local.trained("plain", sets)
    moved = local.trained("moved", {**sets, "memory.activation_offload": True})
    assert final_tensors(moved, 4) == final_tensors(plain, 4)
    events = local.events(moved, "offload")
    assert [(event["op"], event["step"]) for event in events] == [
        (op, step) for step in (1, 2, 3, 4) for op in ("offload", "restore")
    ]
    assert all(event["num_bytes"] > 0 for event in events)


@pytest.mark.usefixtures("exact_chunks")
def test_an_accumulated_step_of_a_run_takes_the_host_memory_of_a_micro_batch(local: LocalRuns) -> None:
    taken = {}
    for accumulation in (1, 4):
        sets = {"train.max_steps": 3, "model.seq_len": 64, "model.n_layer": 3, "memory.activation_offload": True}
        sets |= {"train.micro_batch_size": 2, "train.grad_accum_steps": accumulation, "eval.interval_steps": 1}
        run = local.open(local.create(f"accumulated-{accumulation}", sets))
        assert finish(run).exit_code == 0
        run.events.close()
        strategy = next(each for each in run.strategies if isinstance(each, ActivationOffload))
        taken[accumulation] = strategy.pool.num_bytes
        moved = [event["num_bytes"] for event in local.events(run.paths, "offload") if event["op"] == "offload"]
        assert moved == [accumulation * taken[accumulation]] * 3
    assert taken[4] == taken[1] > 0


def test_a_compiled_model_is_refused(local: LocalRuns) -> None:
    with pytest.raises(ConfigError, match=r"memory\.activation_offload: works block by block"):
        local.create("compiled", {"memory.activation_offload": True, "device.compile": "default"})
