"""Every predictor with every memory strategy: a jump that stands, its rollback, a jump that is undone, and a resume.

Which jump stands is the test's to say, so that each pair goes both ways. A strategy that changes no arithmetic must
make the very jump that the run without it makes; what is stored in another way must come back as it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

from gpuworkbench import registry
from gpuworkbench.hybrid import jump
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, on_reaching

BF16 = {"memory.weights": "bf16"}
STREAMED = {"memory.optimizer_offload": "streamed"}
IN_BACKWARD = {"memory.optimizer_in_backward": True}  # SETS have one micro-batch a step, and clip nothing
CHUNKED = {"memory.chunked_cross_entropy": True, "memory.cross_entropy_chunk_rows": 32}

# Those that compute what plain training computes, bit for bit.
EXACT: dict[str, dict[str, Any]] = {
    "checkpointing-all": {"memory.activation_checkpointing": "all"},
    "checkpointing-every-2nd": {"memory.activation_checkpointing": "every_n"},
    "checkpointing-selective": {"memory.activation_checkpointing": "selective"},
    "activation-offload": {"memory.activation_offload": True},
    "predict-aware": {"memory.optimizer_offload": "predict_aware"},
    "predictor-on-host": {"hybrid.state_device": "host"},
    "in-backward": IN_BACKWARD,
}
OTHER: dict[str, dict[str, Any]] = {
    "streamed": STREAMED,  # the arithmetic of AdamW(foreach=False); plain training has the fused one's
    "chunked": CHUNKED,
    "by-phase": {"memory.precision_predict": "bf16"},
    "bf16": BF16,
    "stochastic": {**BF16, "memory.stochastic_rounding": True},
    "packed": {**BF16, "memory.packed_optimizer": True},
    "packed-in-backward": {**BF16, "memory.packed_optimizer": True, **IN_BACKWARD},
    "streamed-masters": {**BF16, **STREAMED},
    "stack-a": {
        **BF16,
        **CHUNKED,
        "memory.packed_optimizer": True,
        "memory.activation_checkpointing": "selective",
        "hybrid.state_device": "host",
    },
    "packed-predict-aware": {
        **BF16,
        "memory.packed_optimizer": True,
        "memory.optimizer_offload": "predict_aware",
        "memory.activation_offload": True,
    },
}
STRATEGIES = {**EXACT, **OTHER}
FULL_STEPS = 7  # as many as the predictor that needs most displacements
FIRST_JUMP = 1 + FULL_STEPS
STEPS = FIRST_JUMP + 1 + FULL_STEPS + 1
SETS: dict[str, Any] = {
    "model.n_layer": 2,
    "model.n_embd": 16,
    "model.seq_len": 8,
    "train.grad_accum_steps": 1,
    "train.micro_batch_size": 4,
    "train.grad_clip_norm": 0.0,
    "train.max_steps": 2 * STEPS,  # some predictors rest near the end; the test stops before
    "eval.interval_steps": 0,
    "checkpoint.interval_steps": 0,
    "hybrid.enabled": True,
    "hybrid.warmup_steps": 1,
    "hybrid.full_steps": FULL_STEPS,
    "hybrid.correct_steps": 2,
    "hybrid.max_predict_steps": 3,
    "hybrid.correction_interval": 0,
    "hybrid.exploration": 9,
    "hybrid.probe_sequences": 2,
    "hybrid.divergence_threshold": 1e6,
    "hybrid.moment_damping": 0.5,
}


def sets(predictor: str, strategy: str) -> dict[str, Any]:
    keys = STRATEGIES.get(strategy, {})
    return {**SETS, "hybrid.predictor": predictor, "hybrid.dynamics": predictor == "learned", **keys}


def name_of(predictor: str, strategy: str, what: str = "") -> str:
    return f"{predictor}-{strategy}{what}".replace("_", "-")


def held(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Every tensor of weights and optimizer, wherever it lies now, as a checkpoint would have it."""
    return {
        f"{part}/{name}": tensor.detach().clone()
        for part in ("model", "optimizer")
        for name, tensor in run.parts[part].state().tensors.items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def judged(accepts: Callable[[], bool]) -> Iterator[None]:
    """Whether a jump stands is `accepts()`, whatever the probe says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jump, "is_accepted", lambda *_: accepts())
        yield


class Passed(NamedTuple):
    """What there was before and after the jump that stood, and a step later."""

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    next: dict[str, torch.Tensor]


class Stop(Exception):
    """Ends the training."""


class NotANumber(NamedTuple):
    """A loss that is none, after a jump: it is the jump's fault, and undone."""

    step: int
    what: str = "loss"
    value: float = float("nan")


def stands_and_is_undone(local: LocalRuns, predictor: str, strategy: str) -> Passed:
    """A jump that stands, rolled back two true steps later, and one that is undone at once; both bit for bit."""
    run = local.open(local.create(name_of(predictor, strategy), sets(predictor, strategy)))
    jumper = run.hybrid.jumper
    make_jump = jumper.jump
    seen: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        before = held(run)
        outcome = make_jump(*args, **kwargs)
        seen.append((before, held(run)))
        return outcome

    jumper.jump = watched  # type: ignore[method-assign]
    later: list[dict[str, torch.Tensor]] = []

    def one_step_on() -> None:
        later.append(held(run))
        assert run.hybrid.survives(NotANumber(FIRST_JUMP + 1))
        assert same(held(run), seen[0][0]), "the rollback is not what was before the jump"
        assert run.phases.current == "full"

    def stop() -> None:
        raise Stop

    on_reaching(run, FIRST_JUMP + 1, one_step_on)
    on_reaching(run, STEPS, stop)
    with judged(lambda: len(seen) == 0), pytest.raises(Stop):
        finish(run)
    run.events.close()
    (before, after), (undone_before, undone_after) = seen
    assert same(before, after) == (predictor == "null"), "the jump that stands moved nothing"
    assert not any(tensor.isnan().any() for tensor in after.values() if tensor.is_floating_point())
    assert same(undone_before, undone_after), "the jump that was undone left something"
    stood = [event["accepted"] for event in local.events(run.paths, "prediction")]
    assert stood == [True, False]
    return Passed(before, after, later[0])


@pytest.mark.parametrize("predictor", registry.PREDICTORS)
def test_a_jump_stands_or_is_undone_bit_for_bit_with_each_strategy(local: LocalRuns, predictor: str) -> None:
    plain = stands_and_is_undone(local, predictor, "plain")
    for strategy in STRATEGIES:
        passed = stands_and_is_undone(local, predictor, strategy)
        if strategy in EXACT:
            for one, other in zip(passed, plain, strict=True):
                assert same(one, other), f"{strategy}: not the run without it"


def test_every_strategy_there_is_takes_part(local: LocalRuns) -> None:
    names = {strategy.name for keys in STRATEGIES for strategy in opened_strategies(local, keys)}
    assert set(registry.MEMORY_STRATEGIES) <= names


def opened_strategies(local: LocalRuns, strategy: str) -> list[Any]:
    run = local.open(local.create(f"named-{strategy}", sets("null", strategy)))
    run.events.close()
    return run.strategies


PREDICTORS = list(registry.PREDICTORS)
PAIRS = [(PREDICTORS[number % len(PREDICTORS)], strategy) for number, strategy in enumerate(OTHER)]


@pytest.mark.parametrize(("predictor", "strategy"), PAIRS)
def test_killed_after_a_jump_that_stands_and_resumed(local: LocalRuns, predictor: str, strategy: str) -> None:
    """Each predictor with a strategy or two that hold state in their own way; some move it, some recompute."""
    keys = {**sets(predictor, strategy), "train.max_steps": STEPS + 4, "checkpoint.interval_steps": 3}
    with judged(lambda: True):
        whole = local.trained(name_of(predictor, strategy, "-whole"), keys)
        cut = local.create(name_of(predictor, strategy, "-cut"), keys)
        killed(local.open(cut), FIRST_JUMP + 3)
        assert local.attempt(cut) == 0
    assert any(event["accepted"] for event in local.events(whole, "prediction"))
    assert final_tensors(cut, STEPS + 4) == final_tensors(whole, STEPS + 4)
    assert local.losses(cut) == local.losses(whole)
