"""Where extrapolation must win it is accepted, and where it must lose it is undone: problems with a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpuworkbench.hybrid.components import NoAdvice
from gpuworkbench.hybrid.divergence import ACTIONS, Level, Verdict
from tests.fixtures.toy_training import ToyTraining

EIGENVALUES = torch.tensor([1.0, 1.0, 0.3, 0.3, 0.1, 0.1, 0.03, 0.03])
PHASES = {"warmup_steps": 2, "full_steps": 10, "correct_steps": 2, "probe_sequences": 2}


def quadratic(w: Tensor) -> Tensor:
    return (EIGENVALUES * w.square()).sum() / 2


def on_the_quadratic(predictor: str, **keys: object) -> ToyTraining:
    """Gradient descent on it: w_t = (1 - lr eigenvalue)^t w_0, a path that every extrapolation shortens."""
    start = torch.linspace(1, 2, 8)
    return ToyTraining(
        start, quadratic, lambda _step, w: EIGENVALUES * w, lr=0.2, predictor=predictor, **{**PHASES, **keys}
    )


@pytest.mark.parametrize("predictor", ["line_jump", "subspace", "ema_trend"])
def test_extrapolation_wins_on_a_quadratic(predictor: str) -> None:
    hybrid, plain = on_the_quadratic(predictor), on_the_quadratic("null")
    hybrid.train()
    plain.train()
    jumps = hybrid.of_type("prediction")
    assert len(jumps) >= 10
    assert all(jump["accepted"] for jump in jumps[:10])
    assert all(jump["probe_after"] < jump["probe_before"] for jump in jumps if jump["accepted"])
    assert not any(event["rolled_back"] for event in hybrid.of_type("correction"))
    assert quadratic(hybrid.model.flat) < 0.7 * quadratic(plain.model.flat)


def test_outer_nesterov_wins_on_a_quadratic() -> None:
    hybrid, plain = on_the_quadratic("outer_nesterov"), on_the_quadratic("null")
    hybrid.train(60)
    plain.train(60)
    assert all(jump["accepted"] for jump in hybrid.of_type("prediction"))
    assert quadratic(hybrid.model.flat) < quadratic(plain.model.flat)


def test_the_subspace_predicts_four_modes_exactly() -> None:
    """A jump over six steps lands where six steps of gradient descent would have (fp32)."""
    training = on_the_quadratic("subspace", max_predict_steps=6, correction_interval=0)
    training.train(12)
    before = training.model.flat.detach()
    assert training.trainer.before_step() is None
    jump = training.of_type("prediction")[0]
    assert (jump["accepted"], jump["horizon_steps"]) == (True, 6)
    expected = before * (1 - 0.2 * EIGENVALUES) ** 6
    torch.testing.assert_close(training.model.flat.detach(), expected, rtol=2e-3, atol=1e-5)


def test_a_random_walk_is_undone_until_nothing_is_predicted_any_more() -> None:
    """From the minimum of |w|^2 every step of a random walk leads away, and so does its repetition."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 64, generator=generator)
    training = ToyTraining(
        torch.zeros(64),
        lambda w: w.square().sum(),
        lambda step, _w: noise[step],
        lr=0.1,
        predictor="line_jump",
        exploration=3,
        **PHASES,
    )
    training.train()
    jumps = training.of_type("prediction")
    assert [jump["accepted"] for jump in jumps] == [False] * 3
    assert all(jump["exploration"] for jump in jumps)
    torch.testing.assert_close(training.model.flat.detach(), -0.1 * noise.sum(0), rtol=1e-4, atol=1e-5)
    reasons = [reason for _, phase, reason in training.phases.changes if phase == "full"]
    assert reasons[-1] == "confidence 0.00 is below 0.60"


def test_a_jump_that_training_refutes_is_rolled_back() -> None:
    """The probe sees an improvement, the true steps after it do not: weights and optimizer go back, bit for bit."""
    training = on_the_quadratic("line_jump", exploration=1, correction_interval=0)
    training.optimizer.param_groups[0]["momentum"] = 0.5
    training.train(12)
    weights = [parameter.detach().clone() for parameter in training.model.h]
    momenta = [training.optimizer.state[p]["momentum_buffer"].clone() for p in training.model.h]
    honest = training.loss
    assert training.trainer.before_step() is None
    assert training.of_type("prediction")[0]["accepted"]
    assert not torch.equal(training.model.h[0], weights[0])
    training.loss = lambda w: honest(w) + 100
    training.train(2)
    training.loss = honest
    assert training.trainer.before_step() is None
    assert training.of_type("correction")[0]["rolled_back"]
    assert all(torch.equal(now, then) for now, then in zip(training.model.h, weights, strict=True))
    buffers = [training.optimizer.state[p]["momentum_buffer"] for p in training.model.h]
    assert all(torch.equal(now, then) for now, then in zip(buffers, momenta, strict=True))
    assert training.phases.changes[-1][1] == "full"
    assert "rolled back" in training.phases.changes[-1][2]
    assert training.trainer.candidates.chosen.acceptance.rate() == 0.0


def noisy(threshold: float) -> ToyTraining:
    """Around a minimum with noise: half of the correct phases are above the level before the jump."""

    def gradient(step: int, w: Tensor) -> Tensor:
        return w + torch.randn(w.shape, generator=torch.Generator().manual_seed(step))

    training = ToyTraining(
        torch.zeros(16),
        lambda w: 1.0 + w.square().mean(),
        gradient,
        lr=0.2,
        max_steps=500,
        **{"predictor": "null", "exploration": 99, "divergence_threshold": threshold, **PHASES},
    )
    training.trainer.monitor = NoAdvice()  # which goes by the same key
    return training


@pytest.mark.parametrize("threshold", [1e-9, 0.5])
def test_the_threshold_is_the_one_that_is_set_however_small(threshold: float) -> None:
    """Against the weighted mean and deviation by their definitions."""
    training, losses = noisy(threshold), []
    observe = training.trainer.observe
    training.trainer.observe = lambda signals: (losses.append(signals.loss), observe(signals))[1]  # type: ignore[func-returns-value, method-assign]
    training.train()
    jumps = [jump["step"] for jump in training.of_type("prediction") if jump["accepted"]]
    verdicts = training.of_type("correction")
    assert len(jumps) >= len(verdicts) > 20
    for jump, verdict in zip(jumps, verdicts, strict=False):
        before = torch.tensor(losses[:jump], dtype=torch.float64)
        weights = 0.1 * 0.9 ** torch.arange(jump - 1, -1, -1, dtype=torch.float64)
        weights[0] *= 10  # the first loss begins the mean
        mean = (weights * before).sum()
        limit = mean + threshold * (weights * (before - mean).square()).sum().sqrt()
        actual = sum(losses[jump : jump + 2]) / 2
        assert verdict["actual_loss"] == pytest.approx(actual)
        assert verdict["rolled_back"] == (actual > float(limit))
    share = sum(verdict["rolled_back"] for verdict in verdicts) / len(verdicts)
    assert 0.1 < share < 0.9


def alarm(training: ToyTraining, level: Level) -> None:
    verdict = Verdict(level, "loss spike", 9.0, 5.0, ACTIONS[level], True)
    training.trainer.monitor._keep(verdict)  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_worse", [True, False])
def test_an_alarm_that_ends_a_correct_phase_does_not_spare_the_jump_its_judgement(is_worse: bool) -> None:
    training = on_the_quadratic("line_jump", exploration=1, correction_interval=0)
    training.train(12)
    weights = training.model.flat.detach().clone()
    honest = training.loss
    training.loss = lambda w: honest(w) + 100.0 * (is_worse and training.step == 12 and bool(jumped()))

    def jumped() -> list[object]:
        return training.of_type("prediction")  # type: ignore[return-value]

    assert training.trainer.before_step() is None
    assert jumped()
    training.train(1)
    assert training.phases.current == "correct"
    alarm(training, Level.warning)
    assert training.trainer.before_step() is None
    assert training.phases.current == "full"
    assert [event["rolled_back"] for event in training.of_type("correction")] == [is_worse]
    assert torch.equal(training.model.flat, weights) == is_worse


def test_an_alarm_that_ends_nothing_does_not_bring_the_judgement_forward() -> None:
    training = on_the_quadratic("line_jump", exploration=1, correction_interval=0)
    training.train(12)
    assert training.trainer.before_step() is None
    training.train(1)
    alarm(training, Level.caution)
    assert training.trainer.before_step() is None
    assert training.phases.current == "correct"
    assert training.of_type("correction") == []
    training.train(1)
    assert training.trainer.before_step() is None
    assert len(training.of_type("correction")) == 1


def test_the_second_jump_repeats_the_true_step_between_the_two() -> None:
    """And not the first jump with it."""
    training = on_the_quadratic("line_jump", exploration=1, correction_interval=2, max_predict_steps=4)
    training.train(12)
    assert training.trainer.before_step() is None
    jumped = training.model.flat.detach().clone()
    training.train(1)
    stepped = training.model.flat.detach().clone()
    assert training.trainer.before_step() is None
    first, second = training.of_type("prediction")
    assert (first["accepted"], second["accepted"]) == (True, True)
    moved = training.model.flat.detach() - stepped
    torch.testing.assert_close(moved, second["horizon_steps"] * (stepped - jumped), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("predictor", ["line_jump", "subspace", "ema_trend"])
def test_what_had_to_forget_within_a_prediction_makes_no_more_jumps_of_it(predictor: str) -> None:
    training = on_the_quadratic(predictor, exploration=9, correction_interval=2, max_predict_steps=4, full_steps=30)
    while not training.of_type("prediction"):
        training.train(1)
    assert training.of_type("prediction")[0]["accepted"]
    assert training.phases.current == "predict"
    training.trainer.candidates.forget()
    training.train(1)
    assert training.trainer.before_step() is None
    assert training.phases.current == "correct"
    assert len(training.of_type("prediction")) == 1
    training.train(60)
    assert len(training.of_type("prediction")) > 1, "it begins anew"


def test_a_micro_correction_that_diverges_rolls_back() -> None:
    training = on_the_quadratic("line_jump", exploration=1)
    training.train(12)
    weights = training.model.flat.detach().clone()
    honest = training.loss
    training.loss = lambda w: honest(w) if training.step <= 12 and not training.of_type("prediction") else honest(w) + 9
    training.train(1)
    assert training.phases.current == "predict"
    assert training.trainer.before_step() is None
    assert training.of_type("micro_correction")[0]["rolled_back"]
    assert torch.equal(training.model.flat, weights)
    assert training.phases.changes[-1][1] == "full"


def test_damping_shrinks_moments_once_after_a_jump_that_stands() -> None:
    training = on_the_quadratic("line_jump", moment_damping=0.5, correction_interval=0)
    training.optimizer.param_groups[0]["momentum"] = 0.3
    training.train(12)
    before = training.optimizer.state[training.model.h[0]]["momentum_buffer"].clone()
    assert training.trainer.before_step() is None
    assert training.of_type("prediction")[0]["accepted"]
    training.trainer.before_update()
    after = training.optimizer.state[training.model.h[0]]["momentum_buffer"]
    assert torch.equal(after, before * 0.5)
    training.trainer.before_update()
    assert torch.equal(after, before * 0.5)
