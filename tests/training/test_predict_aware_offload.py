"""The optimizer's state leaves for a predicted phase and comes back bit for bit, when it was promised."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpuworkbench import registry
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.optimizers import STATES
from gpuworkbench.memory.predict_aware_offload import Place, PredictAwareOffload
from gpuworkbench.memory.strategy import Strategy, StrategyContext
from gpuworkbench.memory.tensor_bytes import TensorBytes
from gpuworkbench.models.gpt2 import Gpt2
from gpuworkbench.training.loop import save_checkpoint, train
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.state import OptimizerState
from tests.fixtures.local_run import LocalRuns, final_tensors, on_reaching

OFFLOAD = {"memory.optimizer_offload": "predict_aware"}
BY_HAND = {"hybrid.enabled": True, "hybrid.warmup_steps": 1000}  # it never predicts: the test changes phases


class Setup:
    """A small model with an optimizer that has made a step, and the strategy on it."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW, lookahead: int = 3) -> None:
        config = Gpt2Config(n_layer=2, n_head=2, n_embd=64, seq_len=16, vocab_size=200)
        self.model = Gpt2(config)
        self.model.init_weights(torch.Generator().manual_seed(0))
        self.optimizer = optimizer(self.model.parameters(), lr=1e-3)
        self.told: list[dict[str, Any]] = []
        self.strategy = PredictAwareOffload(lookahead, activation_bytes=1234)
        self.strategy.attach(StrategyContext(self.model, self.optimizer, torch.device("cpu"), self._emit, lambda: 7))
        self.strategy.enter_phase("full", None)
        self.step()

    def _emit(self, kind: type, **fields: Any) -> None:
        self.told.append({"type": kind.__name__, **fields})

    def step(self) -> None:
        self.strategy.before_step()
        tokens = torch.arange(32).view(2, 16)
        self.model(tokens, tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.strategy.after_step()

    def large_state(self) -> list[torch.Tensor]:
        return [t for state in self.optimizer.state.values() for t in state.values() if t.numel() >= 64]


def test_away_it_is_poisoned_and_back_it_is_the_same() -> None:
    setup = Setup()
    tensors, addresses = setup.large_state(), [t.data_ptr() for t in setup.large_state()]
    before = [t.clone() for t in tensors]
    setup.strategy.enter_phase("predict", 5)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True)), "there until it is copied"
    setup.strategy.virtual_step(5)
    assert all(torch.isnan(t).all() for t in tensors)
    assert sum(t.untyped_storage().nbytes() for t in tensors) == 4 * len(tensors)
    assert not set(addresses) & {t.data_ptr() for t in tensors}
    setup.strategy.enter_phase("full", None)
    setup.strategy.before_step()
    after = setup.large_state()
    assert all(a is t for a, t in zip(after, tensors, strict=True)), "the same tensors"
    assert all(torch.equal(t, b) and t.is_contiguous() for t, b in zip(after, before, strict=True))


def test_a_lost_copy_would_be_seen() -> None:
    """Were a transfer not made, the state would be NaN: old bytes never happen to be the right ones."""
    setup = Setup()
    setup.strategy.enter_phase("predict", 5)
    setup.strategy.virtual_step(5)
    setup.strategy._mover.start = lambda copies: _Nothing()  # type: ignore[method-assign]
    setup.strategy.before_step()
    assert all(torch.isnan(t).all() for t in setup.large_state())


class _Nothing:
    def wait(self) -> None: ...

    synchronize = wait

    def timing(self) -> None: ...


@pytest.mark.parametrize(
    ("stretch", "lookahead", "places"),
    [
        (5, 3, ["AWAY", "AWAY", "RETURNING", "RETURNING", "HERE"]),
        (5, 1, ["AWAY", "AWAY", "AWAY", "AWAY", "HERE"]),
        (3, 8, ["AWAY", "RETURNING", "HERE"]),
        (2, 3, ["AWAY", "HERE"]),
        (1, 3, ["HERE"]),
    ],
)
def test_it_returns_in_time_and_one_step_early(stretch: int, lookahead: int, places: list[str]) -> None:
    setup = Setup(lookahead=lookahead)
    setup.strategy.enter_phase("predict", stretch)
    for _ in range(2):  # twice, with a true step in between: a micro-correction
        found = []
        for remaining in range(stretch, 0, -1):
            setup.strategy.virtual_step(remaining)
            found.append(setup.strategy.place.name)
        assert found == places
        setup.step()
        assert setup.strategy.place is Place.HERE


def test_what_is_told() -> None:
    setup = Setup()
    num_bytes = sum(t.numel() * 4 for t in setup.large_state())
    setup.strategy.enter_phase("predict", 5)
    for remaining in range(5, 0, -1):
        setup.strategy.virtual_step(remaining)
    setup.strategy.enter_phase("full", None)
    setup.step()
    discard, offload, restore = setup.told
    assert (discard["op"], discard["target"], discard["freed_bytes"]) == ("discard", "activations", 1234)
    for event, op, freed in ((offload, "offload", num_bytes), (restore, "restore", 0)):
        assert (event["op"], event["target"], event["step"], event["phase"]) == (op, "optimizer", 7, "predict")
        assert (event["num_bytes"], event["freed_bytes"]) == (num_bytes, freed)
        assert event["duration_s"] >= event["overlapped_s"] >= 0 < event["duration_s"]


def test_a_phase_that_ends_before_it_began() -> None:
    setup = Setup()
    before = [t.clone() for t in setup.large_state()]
    setup.strategy.enter_phase("predict", None)
    setup.strategy.enter_phase("full", None)
    assert setup.strategy.place is Place.HERE
    assert all(torch.equal(t, b) for t, b in zip(setup.large_state(), before, strict=True))
    assert setup.told == [setup.told[0]], "the transfer is told with the next step"


def test_state_that_shares_memory_stays_shared() -> None:
    setup = Setup()
    first = next(iter(setup.optimizer.state.values()))
    flat = torch.arange(2.0 * first["exp_avg"].numel())
    half = first["exp_avg"].numel()
    first["exp_avg"] = flat[:half].view_as(first["exp_avg"])
    first["exp_avg_sq"] = flat[half:].view_as(first["exp_avg_sq"])
    before = flat.clone()
    setup.strategy.enter_phase("predict", 5)
    setup.strategy.virtual_step(5)
    setup.strategy.before_step()
    assert first["exp_avg"].untyped_storage().data_ptr() == first["exp_avg_sq"].untyped_storage().data_ptr()
    assert torch.equal(torch.cat([first["exp_avg"].flatten(), first["exp_avg_sq"].flatten()]), before)


@pytest.mark.parametrize("virtual", [0, 1, 3, 5])
def test_a_checkpoint_sees_the_values_wherever_they_are(virtual: int) -> None:
    setup = Setup()
    part = OptimizerState(setup.model, setup.optimizer, [setup.strategy])
    before = {name: t.clone() for name, t in part.state().tensors.items()}
    setup.strategy.enter_phase("predict", 5)
    for remaining in range(5, 5 - virtual, -1):
        setup.strategy.virtual_step(remaining)
    for name, tensor in part.state().tensors.items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.shape == before[name].shape
    saved = part.state()
    saved.tensors = {name: t * 2 for name, t in saved.tensors.items()}
    part.load(saved)
    assert setup.strategy.place is Place.HERE
    assert all(torch.equal(t, before[name] * 2) for name, t in part.state().tensors.items())


# In runs


def predict_between(run: TrainingRun, first: int, last: int) -> None:
    """A predicted phase over true steps `first` + 1 to `last`, with a stretch of three virtual steps before each."""

    def stretch() -> None:
        for remaining in (3, 2, 1):
            for strategy in run.strategies:
                strategy.virtual_step(remaining)

    on_reaching(run, first, lambda: (run.phases.change(first, "predict", "test", 3), stretch()))
    for step in range(first + 1, last):
        on_reaching(run, step, stretch)
    on_reaching(run, last, lambda: run.phases.change(last, "full", "test"))


@pytest.mark.parametrize("optimizer", registry.OPTIMIZERS)
def test_training_is_the_same_bit_for_bit(local: LocalRuns, optimizer: str) -> None:
    sets = {"train.max_steps": 6, "optimizer.name": optimizer, **BY_HAND}
    plain = local.trained(f"plain-{optimizer}", sets)
    run = local.open(local.create(f"moved-{optimizer}", {**sets, **OFFLOAD}))
    predict_between(run, 2, 5)
    train(run)
    save_checkpoint(run, wait=True)
    run.events.close()
    assert final_tensors(run.paths, 6) == final_tensors(plain, 6)
    moved = local.events(run.paths, "offload")
    has_state = any(
        len(shape) > 1 for shape in STATES[run.optimizer.param_groups[0].get("state", "adam")]((64, 64)).values()
    )
    assert [event["op"] for event in moved] == ["discard"] + ["offload", "restore"] * (3 if has_state else 0)


def test_saved_while_it_is_away_and_resumed(local: LocalRuns) -> None:
    sets = {"train.max_steps": 6, "checkpoint.interval_steps": 100, **BY_HAND}
    plain = local.trained("plain", sets)
    paths = local.create("saved-away", {**sets, **OFFLOAD})
    run = local.open(paths)

    def die() -> None:
        raise KeyboardInterrupt

    def save_away() -> None:
        run.phases.change(3, "predict", "test", 5)
        for strategy in run.strategies:
            strategy.virtual_step(5)
        save_checkpoint(run, wait=True)
        die()

    on_reaching(run, 3, save_away)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    run.events.close()
    saved = load_file(paths.checkpoint(3) / "optimizer.safetensors")
    assert not any(torch.isnan(t).any() for t in saved.values())
    assert json.loads((paths.checkpoint(3) / "state.json").read_text())["step"] == 3
    assert local.attempt(paths) == 0
    assert final_tensors(paths, 6) == final_tensors(plain, 6)


HYBRID = {
    "hybrid.enabled": True, "hybrid.predictor": "line_jump", "hybrid.warmup_steps": 2, "hybrid.full_steps": 3,
    "hybrid.max_predict_steps": 5, "hybrid.correction_interval": 2, "hybrid.correct_steps": 1,
    "hybrid.exploration": 3, "hybrid.confidence_threshold": 0.0, "hybrid.probe_sequences": 2,
    "hybrid.state_device": "host", "hybrid.moment_damping": 0.9, "train.max_steps": 14,
    "checkpoint.interval_steps": 5,
}  # fmt: skip


@pytest.mark.parametrize("predictor", ["line_jump", "outer_nesterov"])
def test_the_hybrid_trainer_moves_it_and_is_the_same_run(local: LocalRuns, predictor: str) -> None:
    sets = {**HYBRID, "hybrid.predictor": predictor}
    here = local.trained(f"hybrid-here-{predictor}".replace("_", "-"), sets)
    away = local.trained(f"hybrid-away-{predictor}".replace("_", "-"), {**sets, **OFFLOAD})
    assert final_tensors(away, 14) == final_tensors(here, 14)
    assert local.losses(away) == local.losses(here)
    moved = local.events(away, "offload")
    assert {event["op"] for event in moved} == {"discard", "offload", "restore"}
    assert all(event["phase"] == "predict" for event in moved if event["op"] == "offload")
    assert sum(event["op"] == "offload" for event in moved) == sum(event["op"] == "restore" for event in moved)
    assert not local.events(away, "warning")


class Marks(Strategy):
    """Labels a recording by what the memory is of: a true step, or a predicted stretch until state comes back."""

    name = "marks"

    def __init__(self, recording: TensorBytes, offload: PredictAwareOffload) -> None:
        self.recording = recording
        self.offload = offload

    def virtual_step(self, remaining_to_true_step: int) -> None:
        self.recording.mark("predict" if self.offload.place is Place.AWAY else "between")

    def before_step(self) -> None:
        self.recording.mark("full")


def test_a_predicted_phase_needs_half_the_memory_of_a_full_one(local: LocalRuns) -> None:
    """Tensor bytes of the hybrid trainer's own jumps against those of true steps, in a shape like
    rtx5080_gpt2_small_memory; what is the host's (state that left, copies to undo a jump) is not the device's."""
    sets = {
        "model.n_layer": 2, "model.n_embd": 128, "model.n_head": 4, "model.seq_len": 64,
        "train.micro_batch_size": 2, "train.grad_accum_steps": 4, **HYBRID, "train.max_steps": 9,
        "hybrid.moment_damping": 1.0, "eval.interval_steps": 0, "checkpoint.interval_steps": 0,
    }  # fmt: skip
    with TensorBytes() as recording:
        run = local.open(local.create("peaks", {**sets, **OFFLOAD}))
        offload = next(strategy for strategy in run.strategies if isinstance(strategy, PredictAwareOffload))
        run.strategies.append(Marks(recording, offload))
        recording.mark("full")
        train(run)
    run.events.close()
    peaks = recording.peaks()
    assert local.events(run.paths, "prediction")
    below = 1 - peaks["predict"] / peaks["full"]
    assert below >= 0.4, peaks
