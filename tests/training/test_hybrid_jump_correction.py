"""Jumps corrected by what shadow proposals missed: the closed form, where there is a bias and where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gpuworkbench.hybrid.advice.shadow import ShadowAdvice
from gpuworkbench.hybrid.jump_correction import (
    FORGETTING,
    PRIOR,
    Correction,
    Gains,
    key_of,
    learn_gains,
    nearest,
)
from gpuworkbench.hybrid.residuals import Residual, ResidualStore, compare
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.training.loop import train_one_step
from tests.fixtures.local_run import LocalRuns, final_tensors, killed
from tests.fixtures.toy_training import ToyTraining
from tests.training.test_hybrid_resume import SETS, STEPS, told

NAMES = {"h.0.weight": (24, 16), "h.0.bias": (24,), "h.1.weight": (24, 16)}
HORIZON = 5


def random(generator: torch.Generator, scale: float = 1.0) -> dict[str, Tensor]:
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in NAMES.items()}


def norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt())


def played(n: int, bias: float, noise: float, factor: float = 1.0) -> tuple[list[tuple[float, float]], Gains]:
    """`n` proposals p with the truth factor p + bias d + noise; (error without, with) of each, and what was learnt."""
    generator = torch.Generator().manual_seed(1)
    store, gains, errors = ResidualStore(), Gains(), []
    left, right = torch.randn(24, 1, generator=generator), torch.randn(1, 16, generator=generator)
    always = {"h.0.weight": left @ right, "h.0.bias": torch.zeros(24), "h.1.weight": left.flip(0) @ right}
    for step in range(n):
        predicted, off = random(generator), random(generator, noise)
        actual = {name: factor * p + bias * always[name] + off[name] for name, p in predicted.items()}
        correction = Correction(store.kept, "ema_trend", [0.0], HORIZON)
        corrected = learn_gains(gains, "ema_trend", correction, predicted, actual)
        residual = compare(step, HORIZON, "ema_trend", predicted, actual)
        store.add(residual._replace(context=(0.0,)))
        assert corrected is not None
        errors.append((residual.relative_error, corrected))
    return errors, gains


def late(errors: list[tuple[float, float]]) -> float:
    """Mean error with the correction over that without, of the second half."""
    without, corrected = np.mean(errors[len(errors) // 2 :], axis=0)
    return float(corrected / without)


def test_a_systematic_miss_is_corrected() -> None:
    """The same direction is missed each time, beside a third of it in noise: what is left is about the noise."""
    errors, gains = played(40, bias=1.0, noise=0.3)
    assert late(errors) < 0.4
    a, b = gains.of("ema_trend/h.0")
    assert b > 0.85
    assert abs(a) < 0.05


def test_proposals_that_go_too_far_are_shortened() -> None:
    errors, gains = played(40, bias=0.0, noise=0.1, factor=0.5)
    assert late(errors) < 0.3
    a, b = gains.of("ema_trend/h.1")
    assert a == pytest.approx(-0.5, abs=0.05)
    assert b < 0.1


def test_noise_is_left_alone() -> None:
    errors, gains = played(80, bias=0.0, noise=1.0)
    assert late(errors) < 1.01
    assert all(abs(gain) < 0.05 for key in gains.sums for gain in gains.of(key))


def test_gains_are_the_ridge_regression() -> None:
    generator, gains, rows = np.random.default_rng(0), Gains(), []
    for _ in range(30):
        p, c = generator.standard_normal(50), generator.standard_normal(50)
        c += 0.4 * p
        r = -0.3 * p + 0.6 * c + 0.5 * generator.standard_normal(50)
        rows.append((p, c, r))
        gains.learn("k", [p @ p, p @ c, c @ c, r @ p, r @ c], r @ r)
    gram, sums = PRIOR * np.eye(2), np.zeros(2)
    for age, (p, c, r) in enumerate(reversed(rows)):
        x = np.stack((p, c))
        gram += FORGETTING**age * x @ x.T / (r @ r)
        sums += FORGETTING**age * x @ r / (r @ r)
    assert gains.of("k") == pytest.approx(tuple(np.linalg.solve(gram, sums)))
    assert gains.of("another") == (0.0, 0.0)
    before = gains.of("k")
    gains.learn("k", [float("nan")] * 5, 1.0)
    gains.learn("k", [1.0] * 5, 0.0)
    assert gains.of("k") == before, "what is no number teaches nothing"


def test_gains_never_turn_a_proposal_round_or_a_correction_about() -> None:
    gains = Gains()
    for _ in range(50):
        gains.learn("k", [1.0, 0.0, 1.0, -3.0, -3.0], 1.0)
    assert gains.of("k") == (-1.0, 0.0)


def residual(step: int, context: tuple[float, ...], predictor: str = "subspace") -> Residual:
    tensors = {"w": torch.full((3,), float(step))}
    one = compare(step, HORIZON, predictor, {"w": torch.zeros(3)}, tensors)
    return one._replace(context=context)


def test_the_nearest_count_and_newer_ones_more() -> None:
    near = [residual(step, (0.0, 0.1)) for step in range(1, 13)]
    far = [residual(100, (5.0, 5.0)), residual(200, (0.0, 0.1), "ema_trend")]
    found = nearest([*far, *near], "subspace", [0.0, 0.0])
    assert sorted(r.step for _, r in found) == list(range(3, 13)), "ten, the newest of those that are as near"
    weights = {r.step: weight for weight, r in found}
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights[12] / weights[11] == pytest.approx(np.exp(1 / 40))
    correction = Correction([*far, *near], "subspace", [0.0, 0.0], 2 * HORIZON)
    expected = 2.0 * sum(weight * step for step, weight in weights.items())
    torch.testing.assert_close(correction.of("w", torch.device("cpu")), torch.full((3,), expected))
    assert nearest([], "subspace", [0.0]) == []


# In the trainer

EIGENVALUES = torch.tensor([1.0, 1.0, 0.3, 0.3, 0.1, 0.1, 0.03, 0.03])


def on_a_quadratic(predictor: str, **keys: Any) -> ToyTraining:
    """Gradient descent bends: a running mean of displacements is too long, each time."""
    phases = {"warmup_steps": 2, "full_steps": 12, "correct_steps": 2, "probe_sequences": 2, "max_predict_steps": 4}
    return ToyTraining(
        torch.linspace(1, 2, 8) * 1e3,
        lambda w: (EIGENVALUES * w.square()).sum() / 2,
        lambda _step, w: EIGENVALUES * w,
        lr=0.05,
        max_steps=400,
        **{"predictor": predictor, "corrector": True, "exploration": 100, **phases, **keys},
    )


def test_jumps_of_a_path_are_what_shadows_say_they_should_be() -> None:
    """The jump is (1 + a) p + b c, where p is the proposal as it was; and the shadows' error falls."""
    training = on_a_quadratic("ema_trend", correction_interval=0)
    shadow = training.trainer.residuals
    assert isinstance(shadow, ShadowAdvice)
    training.train(150)
    while True:  # until right before a jump
        before = training.model.flat.detach().clone()
        predictor = training.trainer.candidates.chosen.predictor
        trends = {name: trend.clone() for name, trend in predictor.slots["trend"].items()}
        count = predictor.numbers["count"]
        jumps = len(training.of_type("prediction"))
        assert training.trainer.before_step() is None
        if len(training.of_type("prediction")) > jumps:
            break
        training.train(1)
    jump = training.of_type("prediction")[-1]
    assert jump["accepted"]
    moved = training.model.flat.detach() - before
    expected = []
    for name, trend in trends.items():
        p = trend * (jump["horizon_steps"] / (1 - 0.7**count))
        a, b = shadow.gains.of(key_of("ema_trend", name))
        c = Correction(shadow.store.kept, "ema_trend", shadow.inputs_now, jump["horizon_steps"]).of(name, p.device)
        assert (a, b) != (0.0, 0.0), "the path bends"
        expected.append((1 + a) * p + b * c)
    torch.testing.assert_close(moved, torch.cat(expected), rtol=1e-3, atol=2e-3)
    assert jump["delta_norm"] == pytest.approx(float(moved.norm()), rel=1e-4)
    kept = [(r.relative_error, r.corrected_error or 0.0) for r in shadow.store.kept]
    assert late(kept) < 0.7


@pytest.mark.parametrize("predictor", ["linear", "line_jump", "null", "outer_nesterov"])
def test_what_does_not_aim_at_the_path_is_not_corrected_to_it(predictor: str) -> None:
    training = on_a_quadratic(predictor)
    training.train(120)
    assert training.trainer.residuals.correction(predictor, 4) is None
    shadow = training.trainer.residuals
    assert isinstance(shadow, ShadowAdvice)
    assert shadow.gains.sums == {}
    assert training.of_type("prediction")


def test_without_the_corrector_nothing_is() -> None:
    training = on_a_quadratic("ema_trend", corrector=False)
    assert training.trainer.residuals.correction("ema_trend", 4) is None


SHADOWED: dict[str, Any] = {
    **SETS,
    "optimizer.lr": 1e-4,
    "hybrid.predictor": "subspace",
    "hybrid.bandit": True,
    "hybrid.bandit_predictors": "ema_trend",
    "hybrid.corrector": True,
    "hybrid.exploration": 99,
    "hybrid.max_predict_steps": 2,
    "hybrid.correction_interval": 0,
    "train.max_steps": 3 * STEPS,
    "eval.interval_steps": 3 * STEPS,
}


def test_killed_while_a_proposal_waits_it_is_the_same_run(local: LocalRuns) -> None:
    """Corrected jumps included: gains and residuals are in the checkpoint, and so is the state they are asked in."""
    whole = local.trained("whole", SHADOWED)
    cut = local.create("cut", SHADOWED)
    for step in (30, 45, 62):
        killed(local.open(cut), step)
    assert local.attempt(cut) == 0
    assert final_tensors(cut, 3 * STEPS) == final_tensors(whole, 3 * STEPS)
    assert told(local, cut) == told(local, whole)
    run = local.open(whole)
    assert isinstance(run.hybrid, HybridTrainer)
    shadow = run.hybrid.residuals
    assert isinstance(shadow, ShadowAdvice)
    assert {r.predictor for r in shadow.store.kept} == {"subspace", "ema_trend"}, "they take turns"
    assert any(a != 0.0 for a, _ in map(shadow.gains.of, shadow.gains.sums))
    assert all(len(r.context) > 5 for r in shadow.store.kept)
    run.events.close()


def test_what_an_older_version_kept_is_understood(local: LocalRuns) -> None:
    run = local.open(local.create("older", SHADOWED))
    for _ in range(20):
        assert train_one_step(run) is None
    assert isinstance(run.hybrid, HybridTrainer)
    shadow = run.hybrid.residuals
    assert isinstance(shadow, ShadowAdvice)
    part = shadow.state()
    part.values = json.loads(json.dumps(part.values))
    for name in ("proposed_by", "turn", "inputs_now", "gains.sums"):
        del part.values[name]
    for row in part.values["kept"]:
        del row["context"], row["corrected_error"]
    n = len(part.values["kept"])
    assert n > 0
    shadow.load(part)
    assert [r.context for r in shadow.store.kept] == [()] * n
    assert shadow.gains.sums == {}
    run.events.close()
