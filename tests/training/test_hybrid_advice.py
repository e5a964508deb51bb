"""The judges beside a real training: their actions happen, and they resume bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpuworkbench.hybrid.bandit import context_of
from gpuworkbench.hybrid.divergence import ACTIONS, Level, Verdict
from gpuworkbench.hybrid.dynamics import model
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.loop import set_learning_rate, train_one_step
from gpuworkbench.training.recovery import NonfiniteError, recover
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import LocalRuns, final_tensors, killed, wrapped_forward
from tests.training.test_hybrid_resume import SETS, told

ALL = {"hybrid.dynamics": True, "hybrid.corrector": True, "hybrid.bandit": True, "hybrid.auto_tuning": True}
STEPS = 90
LONG: dict[str, Any] = {
    **SETS,
    **ALL,
    "train.max_steps": STEPS,
    "checkpoint.interval_steps": 9,
    "eval.interval_steps": STEPS,
    "hybrid.confidence_threshold": 0.05,
}


@pytest.fixture
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dynamics model that learns every tick, as beside a training whose steps are large."""
    monkeypatch.setattr(model, "update_interval", lambda step_flops: 1)
    monkeypatch.setattr(model, "WARM_SEQUENCES", 2)


@pytest.mark.usefixtures("quick_model")
@pytest.mark.parametrize("predictor", ["learned", "outer_nesterov"])
def test_with_all_advice_a_killed_run_is_the_same_run(local: LocalRuns, predictor: str) -> None:
    sets = {**LONG, "hybrid.predictor": predictor}
    whole = local.trained(f"whole-{predictor}", sets)
    cut = local.create(f"cut-{predictor}", sets)
    for step in (20, 61, 80):
        killed(local.open(cut), step)
    assert local.attempt(cut) == 0
    assert final_tensors(cut, STEPS) == final_tensors(whole, STEPS)
    assert told(local, cut) == told(local, whole)
    run = local.open(whole)
    assert isinstance(run.hybrid, HybridTrainer)
    assert run.hybrid.dynamics.model.updates > 0  # type: ignore[attr-defined]
    assert run.hybrid.corrector.at_5.count > 0  # type: ignore[attr-defined]
    assert run.hybrid.bandit.bandit.count > 0  # type: ignore[attr-defined]
    run.checkpointer.wait()
    run.events.close()


# Actions that really happen

SHORT: dict[str, Any] = {**SETS, "hybrid.predictor": "null", "train.max_steps": 12, "checkpoint.interval_steps": 4}


def opened(local: LocalRuns, run_id: str, **sets: Any) -> tuple[TrainingRun, HybridTrainer]:
    """A run before its first step."""
    run = local.open(local.create(run_id, {**SHORT, "eval.interval_steps": 12, **sets}))
    assert isinstance(run.hybrid, HybridTrainer)
    return run, run.hybrid


def close(run: TrainingRun) -> None:
    run.checkpointer.wait()
    run.events.close()


def weights(run: TrainingRun) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.trainable]


def test_a_critical_verdict_rolls_back_cuts_and_forces(local: LocalRuns) -> None:
    run, hybrid = opened(local, "critical")
    for _ in range(6):
        train_one_step(run)
    assert hybrid.controller.phase == "full"
    before, moments = weights(run), [s["exp_avg"].clone() for s in run.optimizer.state.values()]
    hybrid.undo.save(6)
    with torch.no_grad():
        for parameter in run.trainable:
            parameter.add_(1.0)
        for state in run.optimizer.state.values():
            state["exp_avg"].add_(1.0)
    lr = run.optimizer.param_groups[0]["lr"]
    hybrid.monitor._keep(Verdict(Level.critical, "loss level", 9.0, 5.0, ACTIONS[Level.critical], True))  # type: ignore[attr-defined]
    assert hybrid.before_step() is None
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, run.optimizer.state.values(), strict=True))
    assert hybrid.lr_factor() == 0.5
    assert set_learning_rate(run, 6) == pytest.approx(0.5 * lr)
    told_of = local.events(run.paths, "divergence", "phase_changed")
    assert told_of[-2]["level"] == "critical"
    assert "rolled back to the weights and optimizer before the jump at step 6" in told_of[-2]["action"]
    assert "learning rate times 0.5" in told_of[-2]["action"]
    assert told_of[-1]["to_phase"] == "full"
    assert told_of[-1]["reason"].startswith("forced full: loss level")
    close(run)


def test_an_alarm_shortens_horizons_for_a_while(local: LocalRuns) -> None:
    run, hybrid = opened(local, "short")
    monitor = hybrid.monitor
    assert monitor.horizon_factor() == 1.0
    monitor._keep(Verdict(Level.caution, "loss level", 2.0, 1.9, ACTIONS[Level.caution], True))  # type: ignore[attr-defined]
    hybrid.before_step()
    assert monitor.horizon_factor() == 0.5
    monitor.step = 101  # type: ignore[attr-defined]
    assert monitor.horizon_factor() == 1.0
    close(run)


def test_a_run_that_stays_critical_stops_with_a_checkpoint(local: LocalRuns) -> None:
    run, hybrid = opened(local, "stops")
    for _ in range(5):
        train_one_step(run)
    hybrid.monitor._keep(Verdict(Level.critical, "loss level", 9.0, 5.0, ("stop",), True))  # type: ignore[attr-defined]
    outcome = finish(run)
    assert outcome.exit_code == 75
    assert "stays critical" in outcome.reason
    assert run.paths.checkpoint(5).is_dir()
    run.events.close()


def bad_batch(at: int, factor: float) -> Callable[..., Any]:
    """A forward pass whose loss is multiplied by `factor` in step `at` of the attempt."""

    def wrap(forward: Callable[..., torch.Tensor], network: torch.nn.Module) -> Callable[..., torch.Tensor]:
        calls = 0

        def multiplied(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += network.training
            is_bad = network.training and (calls - 1) // 2 + 1 == at  # two micro-batches a step
            loss = forward(x, y)
            return loss * factor if is_bad else loss

        return multiplied

    return wrap


def test_a_batch_without_finite_gradients_is_skipped(local: LocalRuns) -> None:
    """The step counts, its update is not done, and training goes on from the same weights."""
    with wrapped_forward(bad_batch(8, math.nan)):
        run, _ = opened(local, "skips", **{"train.on_nonfinite": "rollback"})
        for _ in range(7):
            train_one_step(run)
        before = weights(run)
        bad = train_one_step(run)
        assert bad is not None
        recover(run, bad)
        assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
        assert run.progress.step == 8
        assert train_one_step(run) is None
        assert not all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert local.events(run.paths, "divergence")[-1]["action"] == "the update was skipped"
    close(run)


def test_stop_on_nonfinite_is_obeyed(local: LocalRuns) -> None:
    with wrapped_forward(bad_batch(5, math.nan)):
        run, _ = opened(local, "stops-nonfinite")
        with pytest.raises(NonfiniteError, match="step 5"):
            finish(run)
    run.events.close()


def test_auto_tuning_reaches_the_rate_and_the_clipping(local: LocalRuns) -> None:
    run, hybrid = opened(local, "tuned", **{"hybrid.auto_tuning": True})
    train_one_step(run)
    plain = set_learning_rate(run, 2)
    tuning = hybrid.tuner.tuning  # type: ignore[attr-defined]
    tuning.band, tuning.clip = 0.5, 1e-3
    hybrid.tuner.told = [["learning rate factor", 1.0, 0.5, "a test"]]  # type: ignore[attr-defined]
    assert set_learning_rate(run, 2) == pytest.approx(plain / 2)
    assert hybrid.clip_norm(1.0) == 1e-3
    hybrid.before_step()
    changed = local.events(run.paths, "config_changed")[-1]
    assert (changed["key"], changed["new"], changed["reason"]) == ("learning rate factor", 0.5, "a test")
    close(run)


def test_the_bandit_switches_prediction_off_and_says_so(local: LocalRuns) -> None:
    """A null predictor brings nothing and costs probes."""
    sets = {"hybrid.bandit": True, "hybrid.exploration": 100, "hybrid.warmup_steps": 1, "hybrid.full_steps": 1}
    run, hybrid = opened(local, "bandit", **sets)
    bandit = hybrid.bandit.bandit  # type: ignore[attr-defined]
    arm = hybrid.bandit.arms[0]  # type: ignore[attr-defined]
    for _ in range(6):
        bandit.reward(arm, context_of(0.1, None, None, 0.0, 0.0), -0.01)
    assert bandit.is_off
    for _ in range(5):
        train_one_step(run)
    reasons = [event["reason"] for event in local.events(run.paths, "phase_changed")]
    assert any("prediction is off: measured benefit -0.01 is not above 0" in reason for reason in reasons)
    assert not local.events(run.paths, "prediction")
    close(run)
