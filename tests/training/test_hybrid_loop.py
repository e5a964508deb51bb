"""The hybrid trainer in the real loop: what it counts, what it reads, what it tells, and how it ends badly."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpuworkbench.config.loader import Override
from gpuworkbench.errors import ConfigError, DataError
from gpuworkbench.hybrid.controller import LEGAL_MOVES
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.launch.create import LaunchRequest, create
from gpuworkbench.launch.fork import fork
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.batches import TrainBatches, probe_sequences
from gpuworkbench.training.loop import run_validation, train_one_step, validate
from tests.fixtures.local_run import Forward, LocalRuns, wrapped_forward
from tests.fixtures.tiny_run import REPOSITORY

ON: dict[str, Any] = {
    "hybrid.enabled": True,
    "hybrid.warmup_steps": 3,
    "hybrid.full_steps": 5,
    "hybrid.correct_steps": 2,
    "hybrid.exploration": 2,
    "hybrid.probe_sequences": 3,
    "train.max_steps": 30,
    "checkpoint.interval_steps": 0,
    "eval.interval_steps": 15,
}


def quickstarts_section() -> dict[str, Any]:
    """The [hybrid] section of the preset as --set would give it."""
    section = tomllib.loads((REPOSITORY / "presets" / "quickstart.toml").read_text())["hybrid"]
    return {f"hybrid.{key}": value for key, value in section.items()}


def test_quickstarts_phases_with_a_jump_that_stands(local: LocalRuns) -> None:
    """The [hybrid] section of the preset on a small model: all four phases, and a jump accepted within 120 steps.

    The rate is so high that steps are mostly noise, as those of the preset's own model are: averages are better.
    """
    sets = quickstarts_section()
    assert sets["hybrid.enabled"]
    assert sets["hybrid.bandit"]
    assert sets["hybrid.predictor"] == "outer_nesterov"
    assert sets["hybrid.exploration"] >= 2
    noisy = {"optimizer.lr": 0.1, "train.grad_accum_steps": 1}
    paths = local.trained("quick", {**sets, **noisy, "train.max_steps": 120, "checkpoint.interval_steps": 0})
    moves = local.events(paths, "phase_changed")
    assert {move["to_phase"] for move in moves} == {"warmup", "full", "predict", "correct"}
    jumps = local.events(paths, "prediction")
    assert any(jump["accepted"] for jump in jumps)
    for jump in jumps:
        following = next(m for m in moves if m["seq"] > jump["seq"])
        assert following["to_phase"] == ("correct" if jump["accepted"] else "full")


def test_quickstart_switches_off_by_itself_what_cannot_pay(local: LocalRuns) -> None:
    """Its [hybrid] section with the control that is accepted each time and moves nothing: it costs probes."""
    steps = {"train.max_steps": 450, "checkpoint.interval_steps": 0, "eval.interval_steps": 0}
    paths = local.trained("null", {**quickstarts_section(), **steps, "hybrid.predictor": "null"})
    jumps = local.events(paths, "prediction")
    assert all(jump["accepted"] for jump in jumps)
    off = next(event for event in local.events(paths, "warning") if event["code"] == "prediction_off")
    found = re.fullmatch(
        r"prediction is switched off: measured benefit (-\S+) per step's cost over (\d+) jumps, "
        r"best arm -\S+: not above 0",
        off["message"],
    )
    assert found is not None
    assert int(found[2]) == len([jump for jump in jumps if jump["step"] < off["step"]])
    rests = [m for m in local.events(paths, "phase_changed") if off["step"] <= m["step"] < off["step"] + 9 * 20]
    assert {m["to_phase"] for m in rests} <= {"full"}
    assert {m["reason"] for m in rests[1:]} == {f"prediction is off: measured benefit {found[1]} is not above 0"}


def test_quickstarts_gate_closes_on_what_is_always_undone(local: LocalRuns) -> None:
    """Before there is enough to measure a benefit by: random directions do not even pass the probe."""
    paths = local.trained(
        "random",
        {**quickstarts_section(), "hybrid.predictor": "random", "train.max_steps": 120, "eval.interval_steps": 0},
    )
    assert [jump["accepted"] for jump in local.events(paths, "prediction")] == [False, False]
    assert local.events(paths, "phase_changed")[-1]["reason"] == "confidence 0.00 is below 0.60"


def test_virtual_steps_are_no_steps_and_take_no_tokens(local: LocalRuns) -> None:
    paths = local.trained("counts", {**ON, "hybrid.predictor": "line_jump", "optimizer.lr": 1e-4})
    steps = local.events(paths, "step")
    assert [event["step"] for event in steps] == list(range(1, 31))
    assert [event["tokens_seen"] for event in steps] == [256 * step for step in range(1, 31)]
    assert "predict" in {event["phase"] for event in steps}
    moves = [event for event in local.events(paths, "phase_changed") if event["from_phase"]]
    assert all(move["to_phase"] in LEGAL_MOVES[move["from_phase"]] and move["reason"] for move in moves)
    assert any("horizon 5" in move["reason"] for move in moves)
    jumps = [event["horizon_steps"] for event in local.events(paths, "prediction")][:3]
    assert sum(jumps) <= 5
    ramped = {event["step"]: event["lr"] for event in steps if event["phase"] == "correct"}
    first = min(ramped)
    neighbour = next(event["lr"] for event in steps if event["step"] == first - 1)
    assert ramped[first] == pytest.approx(neighbour * 2 / 3, rel=0.05)  # 2 correct steps: 2/3, then the whole


def test_the_probe_is_never_trained_on(local: LocalRuns) -> None:
    run = local.open(local.create("reserve", ON))
    tokens, seq_len = run.data.tokens("train"), 32
    reserved = run.config.reserved_tokens
    assert reserved == 3 * seq_len + 1
    order = run.train_batches.order
    assert order.n_tokens == len(tokens) - reserved
    starts = [int(order.starts(epoch, range(order.n_windows)).max()) for epoch in range(5)]
    assert max(starts) + seq_len + 1 <= len(tokens) - reserved
    device = torch.device("cpu")
    x, y = (torch.cat(part) for part in zip(*probe_sequences(tokens, seq_len, 3, device), strict=True))
    expected = torch.from_numpy(tokens.slice(len(tokens) - reserved, reserved))
    assert torch.equal(x.flatten(), expected[:-1])
    assert torch.equal(y.flatten(), expected[1:])
    plain = TrainBatches(tokens, seq_len, run.config.data.seed, 4, device)
    assert plain.order.n_tokens == len(tokens)
    run.events.close()


def test_probes_leave_mode_and_generators_alone(local: LocalRuns) -> None:
    run = local.open(local.create("quiet", ON))
    run.model.train()
    assert isinstance(run.hybrid, HybridTrainer)
    before = torch.get_rng_state()
    first, second = run.hybrid.probe.loss(), run.hybrid.probe.loss()
    assert first == second, "dropout is off"
    assert torch.equal(torch.get_rng_state(), before)
    assert run.model.training
    assert all(parameter.grad is None for parameter in run.model.parameters())
    x, y = (torch.cat(part) for part in zip(*run.hybrid.probe.sequences, strict=True))
    run.model.eval()
    with torch.no_grad():
        assert first.mean == pytest.approx(float(run.model(x, y)), rel=1e-5)
    run.events.close()


def nan_after_the_first_jump(forward: Forward, model: torch.nn.Module) -> Forward:
    """The second true step after the weights have jumped has no loss."""
    seen: dict[str, Any] = {"probes": 0, "steps": 0}

    def failing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = forward(x, y)
        seen["probes"] += not model.training
        seen["steps"] += model.training and seen["probes"] > 0
        return loss * math.nan if seen["steps"] == 3 else loss  # two micro-batches a step

    return failing


def test_a_jump_whose_steps_are_no_numbers_is_undone(local: LocalRuns) -> None:
    """The checkpoint is not needed, nor is it there: what was before the jump is in memory."""
    sets = {**ON, "hybrid.predictor": "null", "eval.interval_steps": 0}
    with wrapped_forward(nan_after_the_first_jump):
        run = local.open(local.create("survives", sets))
        assert finish(run).status == "completed"
    paths = run.paths
    event = local.events(paths, "divergence")[0]
    assert event["level"] == "critical"
    assert event["action"] == "rolled back to the weights and optimizer before the jump at step 8"
    assert local.events(paths, "correction")[0]["rolled_back"]
    forced = [move for move in local.events(paths, "phase_changed") if move["reason"].startswith("forced full")]
    assert [move["step"] for move in forced] == [10]
    assert len(local.losses(paths)) == 30
    assert all(loss is not None for step, loss in local.losses(paths).items() if step != 10)
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    run.events.close()


def test_without_a_jump_to_undo_the_checkpoint_is_gone_back_to(local: LocalRuns) -> None:
    """Where the monitor cannot skip the batch: the scalars of a card are read steps later."""

    def failing(forward: Forward, model: torch.nn.Module) -> Forward:
        calls = 0

        def nan_in_a_full_phase(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += model.training
            return forward(x, y) * (math.nan if calls == 13 else 1)  # step 7, in the first full phase

        return nan_in_a_full_phase

    sets = {**ON, "train.on_nonfinite": "rollback", "checkpoint.interval_steps": 5, "eval.interval_steps": 0}
    with wrapped_forward(failing):
        run = local.open(local.create("back", sets))
        run.hybrid.skips = lambda loss, grad_norm: False  # type: ignore[method-assign]
        assert finish(run).status == "completed"
    announced = [move for move in local.events(run.paths, "phase_changed") if move["from_phase"] is None]
    assert [(move["step"], move["to_phase"], move["reason"]) for move in announced] == [
        (0, "warmup", "the hybrid trainer begins"),
        (5, "full", "as the checkpoint left it"),
    ]
    assert announced[1]["planned_steps"] == 3
    assert local.events(run.paths, "prediction")
    run.events.close()


# The weights' average


def test_the_average_is_validated_and_disturbs_nothing(local: LocalRuns) -> None:
    sets = {**ON, "hybrid.enabled": False, "train.max_steps": 12, "eval.interval_steps": 6}
    plain = local.trained("plain", sets)
    run = local.open(local.create("averaged", {**sets, "hybrid.ema_eval_decay": 0.7}))
    run.model.train()
    average: dict[str, torch.Tensor] = {}
    for _ in range(12):
        assert train_one_step(run) is None
        for name, parameter in run.model.named_parameters():
            now = parameter.detach().clone()
            average[name] = 0.7 * average[name] + 0.3 * now if name in average else now
    run_validation(run)
    own = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    evals = {event["split"]: event for event in local.events(run.paths, "eval")}
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            parameter.copy_(average[name])
        assert evals["val_ema"]["loss"] == pytest.approx(validate(run).loss, rel=1e-6)
        for name, parameter in run.model.named_parameters():
            parameter.copy_(own[name])
    assert evals["val"]["loss"] == validate(run).loss
    assert evals["val"]["is_best"]
    assert not evals["val_ema"]["is_best"]
    assert run.progress.best_val_loss == evals["val"]["loss"]
    assert local.losses(plain) == local.losses(run.paths)
    run.events.close()


# Configuration, data, forks


def refused(local: LocalRuns, sets: dict[str, Any]) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        local.create("refused", {**ON, **sets})
    return caught.value.line()


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"hybrid.predictor": "line_jmp"}, "did you mean 'line_jump'?"),
        ({"hybrid.exploration": 0}, "nothing is ever predicted"),
        ({"hybrid.ema_eval_decay": 0.9, "eval.interval_steps": 0}, "hybrid.ema_eval_decay: needs validations"),
        ({"hybrid.probe_sequences": 100_000}, "hybrid.probe_sequences = 100000 need 3200034"),
    ],
)
def test_refusals(local: LocalRuns, sets: dict[str, Any], words: str) -> None:
    assert words in refused(local, sets)


def test_a_fork_is_refused_a_key_that_does_nothing_in_it(local: LocalRuns) -> None:
    paths = local.trained("idle", {**ON, "hybrid.enabled": False, "train.max_steps": 2})

    def forked(**sets: Any) -> Any:
        overrides = tuple(Override(f"hybrid.{key}", value, "--set") for key, value in sets.items())
        return fork(paths, local.workspace.runs, sets=overrides, environ={})

    with pytest.raises(ConfigError, match=r"^--set: hybrid\.full_steps: has no effect: hybrid\.enabled is false$"):
        forked(full_steps=7)
    forked(full_steps=ON["hybrid.full_steps"])  # as the run has it
    with pytest.raises(ConfigError, match=r"^--set: hybrid\.outer_lr: has no effect: it is for outer_nesterov"):
        forked(enabled=True, predictor="line_jump", outer_lr=0.5)
    forked(enabled=True, outer_lr=0.5)


def test_epochs_are_of_what_is_trained_on(local: LocalRuns) -> None:
    """The reserved slice is no part of an epoch."""
    request = LaunchRequest(
        preset=str(local.workspace.preset),
        runs_dir=local.workspace.runs,
        sets=tuple(Override(f"hybrid.{key}", value, "--set") for key, value in (("enabled", True),)),
        run_id="epochs",
        environ={"GPUWORKBENCH__train__max_epochs": "1", "GPUWORKBENCH__train__max_steps": "100000"},
    )
    config = local.open(create(request)).config
    data_tokens = local.open(local.create("tokens")).data.n_train_tokens
    assert config.train.max_steps == math.ceil((data_tokens - config.reserved_tokens) / config.tokens_per_step)


def test_a_fork_may_switch_it_on_and_off(local: LocalRuns) -> None:
    def forked(parent: Any, run_id: str, sets: dict[str, Any]) -> Any:
        overrides = tuple(Override(key, value, "--set") for key, value in sets.items())
        return fork(parent, local.workspace.runs, sets=overrides, run_id=run_id, environ={})

    plain = local.trained("parent", {**ON, "hybrid.enabled": False, "train.max_steps": 10})
    on = forked(plain, "on", {**{key: value for key, value in ON.items() if "hybrid" in key}, "train.max_steps": 25})
    assert local.attempt(on) == 0
    assert local.events(on, "phase_changed")[0]["to_phase"] == "warmup"
    assert local.events(on, "prediction")
    other = forked(on, "other", {"hybrid.predictor": "line_jump", "train.max_steps": 30})
    assert local.attempt(other) == 0
    off = forked(on, "off", {"hybrid.enabled": False, "train.max_steps": 30})
    assert local.attempt(off) == 0
    assert {event["phase"] for event in local.events(off, "step")} == {"full"}


def test_strategies_are_told_of_phases_and_virtual_steps(local: LocalRuns) -> None:
    told: list[Any] = []

    class Listening:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *arguments: told.append((name, *arguments))

    run = local.open(local.create("told", {**ON, "hybrid.predictor": "line_jump", "optimizer.lr": 1e-4}))
    run.strategies.append(Listening())  # type: ignore[arg-type]
    run.model.train()
    while not any(call[0] == "virtual_step" for call in told):
        told.clear()
        assert train_one_step(run) is None
    names = [call for call in told if call[0] in ("enter_phase", "virtual_step", "before_step")]
    assert names[:4] == [("enter_phase", "predict", 2), ("virtual_step", 2), ("virtual_step", 1), ("before_step",)]
    run.events.close()
