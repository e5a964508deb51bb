"""What the judges learn, against closed forms: low rank, residuals, corrector, calibration, coefficients, dynamics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gpuworkbench.errors import CheckpointError
from gpuworkbench.hybrid.advice.corrector import CorrectorAdvice
from gpuworkbench.hybrid.auto_tuning import BAND_RANGE, MAX_RESTARTS, RESTART_STEPS, AutoTuning, percentile
from gpuworkbench.hybrid.benefit import WINDOW, BenefitMeter
from gpuworkbench.hybrid.calibration import AcceptanceRate, Calibrator, Reliability
from gpuworkbench.hybrid.coefficients import LinearCoefficients, M, MlpCoefficients, inputs_of, lesson, slow_path
from gpuworkbench.hybrid.corrector import Corrector
from gpuworkbench.hybrid.dynamics.model import Dynamics, update_interval
from gpuworkbench.hybrid.dynamics.rssm import (
    CLASSES,
    FREE_NATS,
    GROUPS,
    KL_BALANCE,
    MEMBERS,
    cumulated,
    kl_loss,
    sample,
)
from gpuworkbench.hybrid.dynamics.trend import Trend
from gpuworkbench.hybrid.low_rank import compress
from gpuworkbench.hybrid.residuals import ResidualStore, compare
from gpuworkbench.hybrid.signals import StepSignals
from gpuworkbench.parts import Part
from tests.fixtures.local_run import torch_settings
from tests.fixtures.recorded_signals import recorded


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of these sizes are not worth a second thread, which on a busy machine waits for its turn."""
    with torch_settings():
        torch.set_num_threads(1)
        yield


def through_json(part: Part) -> Part:
    return Part({name: tensor.clone() for name, tensor in part.tensors.items()}, json.loads(json.dumps(part.values)))


# Residuals


def test_compression_is_nearly_the_best_of_its_rank() -> None:
    """Against the truncated singular value decomposition (Eckart and Young)."""
    torch.manual_seed(0)
    matrix = torch.randn(96, 5) @ torch.diag(torch.tensor([9.0, 5.0, 3.0, 2.0, 1.0])) @ torch.randn(5, 64)
    matrix += 0.05 * torch.randn(96, 64)
    values = torch.linalg.svdvals(matrix)
    best = float(values[4:].norm() / values.norm())
    kept = compress(matrix, rank=4, dtype=torch.float32)
    assert best <= kept.error <= 1.01 * best
    assert float((kept.full() - matrix).norm() / matrix.norm()) == pytest.approx(kept.error, rel=1e-4)
    assert kept.ratio == pytest.approx(96 * 64 / (4 * (96 + 64)))
    assert compress(matrix).ratio == pytest.approx(2 * kept.ratio)
    assert torch.equal(compress(matrix).left, compress(matrix).left)


@pytest.mark.parametrize("shape", [(7,), (3, 50), (1,), (), (6, 5, 4)])
def test_small_and_odd_tensors_are_kept(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    kept = compress(tensor, dtype=torch.float32)
    assert kept.full().shape == tensor.shape
    assert kept.error < (0.8 if len(shape) == 3 else 1e-6)


def test_residuals_are_measured_bounded_and_restored() -> None:
    torch.manual_seed(0)
    actual = {"a": torch.randn(64, 48), "b": torch.randn(10)}
    predicted = {"a": 0.5 * actual["a"], "b": -actual["b"]}
    one = compare(7, 5, "subspace", predicted, actual)
    assert one.cosines == {"a": pytest.approx(1.0), "b": pytest.approx(-1.0)}
    flat = [torch.cat([tensors["a"].flatten(), tensors["b"]]) for tensors in (predicted, actual)]
    assert one.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), rel=1e-5)
    assert one.relative_error == pytest.approx(float((flat[1] - flat[0]).norm() / flat[1].norm()), rel=1e-5)
    assert one.norm == pytest.approx(float((flat[1] - flat[0]).norm()), rel=1e-5)
    store = ResidualStore(capacity_bytes=3 * one.num_bytes)
    assert store.last_norm() is None
    for step in range(10):
        store.add(one._replace(step=step))
    assert [residual.step for residual in store.kept] == [7, 8, 9]
    assert store.num_bytes <= store.capacity_bytes
    other = ResidualStore()
    other.load(through_json(store.state()))
    assert other.mean_cosine() == store.mean_cosine()
    assert other.last_norm() == store.last_norm() == one.norm
    assert torch.equal(other.kept[0].deltas["a"].full(), store.kept[0].deltas["a"].full())
    with pytest.raises(CheckpointError):
        other.load(Part(values={"kept": [{}], "seen": 1}))


# Corrector


def test_the_corrector_learns_a_bias_and_a_slope_and_nothing_from_noise() -> None:
    generator = np.random.default_rng(0)
    found = {}
    for name, truth in (("signal", lambda x: 0.03 + 0.02 * x[0]), ("noise", lambda x: 0.0)):
        corrector, errors = Corrector(3), []
        for _ in range(400):
            x = generator.standard_normal(3)
            y = truth(x) + 0.01 * generator.standard_normal()
            errors.append((abs(y), abs(y - float(corrector.correction(x.tolist())[0]))))
            corrector.learn(x.tolist(), [y])
        plain, corrected = np.mean(errors[100:], axis=0)
        found[name] = corrected / plain
    assert found["signal"] < 0.6
    assert found["noise"] == pytest.approx(1.0, abs=0.03)


def test_on_a_recorded_run_the_corrector_lowers_the_error_of_a_plain_forecast() -> None:
    """Of a running mean, which lags: its error is lowered by a tenth at least. See docs/hybrid-parts.md for how little
    it adds to the forecast that the trainer makes."""
    for name in ("quickstart", "small"):
        level = {"mean": 0.0, "count": 0}

        def mean(steps: int, level: dict[str, float] = level) -> float | None:
            return level["mean"] if level["count"] else None

        corrector, errors, steps = CorrectorAdvice(mean), [], recorded(name)
        losses = np.asarray([signals.loss for signals in steps])
        for at, signals in enumerate(steps):
            level["count"] += 1
            level["mean"] += max(0.05, 1 / level["count"]) * (signals.loss - level["mean"])
            corrector.observe(signals)
            if at > 60 and at % 5 == 4 and at + 10 < len(steps):
                truth = math.log(losses[at + 6 : at + 11].mean())
                corrected = corrector.corrected_loss(level["mean"], 10)
                errors.append((abs(truth - math.log(level["mean"])), abs(truth - math.log(corrected))))
        plain, corrected_error = np.mean(errors, axis=0)
        assert corrected_error < 0.9 * plain, name


# Confidence


def test_confidence_is_calibrated_and_scored() -> None:
    """Outcomes whose probability is a logistic function of a score: the Brier score comes near the truth's own."""
    generator = np.random.default_rng(0)
    calibrator, rate, plain, truth = Calibrator(2), AcceptanceRate(), Reliability(), []
    for _ in range(600):
        score = float(generator.standard_normal())
        p = 1 / (1 + math.exp(-2.0 * score))
        accepted = bool(generator.random() < p)
        plain.note(rate.rate, accepted)
        truth.append((p - accepted) ** 2)
        calibrator.learn([score, 0.0], accepted)
        rate.learn(accepted)
    brier, removal = calibrator.reliability.brier, plain.brier
    assert brier is not None
    assert removal is not None
    assert np.mean(truth) <= brier < 0.85 * removal
    for confidence, share, count in calibrator.reliability.bins():
        assert abs(confidence - share) < 0.12 + 1.5 / count**0.5
    other = Calibrator(2)
    other.load(through_json(calibrator.state()))
    assert other.probability([0.3, 0.1]) == calibrator.probability([0.3, 0.1])


def test_the_brier_score_is_the_formula() -> None:
    reliability = Reliability()
    assert reliability.brier is None
    for confidence, accepted in ((0.9, True), (0.6, False), (0.1, False)):
        reliability.note(confidence, accepted)
    assert reliability.brier == pytest.approx((0.01 + 0.36 + 0.01) / 3)
    assert reliability.bins() == [(0.1, 0.0, 1), (0.6, 0.0, 1), (0.9, 1.0, 1)]


# Coefficients


def path(n: int, seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """Displacements (n, 40) that follow d_{t+1} = 0.9 d_t - 0.3 d_{t-1} + noise."""
    generator = np.random.default_rng(seed)
    found = [generator.standard_normal(40), generator.standard_normal(40)]
    while len(found) < n:
        following = 0.9 * found[-1] - 0.3 * found[-2] + noise * generator.standard_normal(40)
        found.append(following)
    return np.stack(found)


@pytest.mark.parametrize("model", [LinearCoefficients(), MlpCoefficients()])
def test_coefficients_of_a_recurrence_are_learnt(model: LinearCoefficients | MlpCoefficients) -> None:
    displacements, errors = path(400, noise=0.5), []
    for at in range(M, len(displacements)):
        kept, came = displacements[at - M : at], displacements[at]
        taught = lesson(kept @ kept.T, kept @ came, float(came @ came))
        c = model.predict(inputs_of(kept @ kept.T))
        errors.append((taught.square - 2 * c @ taught.products + c @ taught.gram @ c) / taught.square)
        model.learn(taught)
    best = 0.5**2 * 40 / np.mean((displacements[200:] ** 2).sum(1))
    assert np.mean(errors[200:]) < best + 0.12
    other = type(model)()
    other.load(through_json(model.state()))
    assert np.array_equal(other.predict(np.zeros(2 * M + 1)), model.predict(np.zeros(2 * M + 1)))


def test_the_slow_path_is_the_average_of_looks_and_of_continued_ones() -> None:
    displacements = path(M + 2, noise=0.2)
    kept = displacements[:M]
    gram, positions = kept @ kept.T, np.vstack((np.zeros(40), np.cumsum(kept, axis=0)))
    average = positions.mean(0) - positions[-1]
    assert kept.T @ slow_path(np.zeros(M), gram, 0.0) == pytest.approx(average)
    unit = np.array([0.0, 0.1, 0.0, -0.3, 0.9])
    lengths = np.sqrt(np.diag(gram))
    following = kept.T @ (unit * lengths[-1] / lengths)
    ahead = np.vstack((positions, positions[-1] + following)).mean(0) - positions[-1]
    assert kept.T @ slow_path(unit, gram, 1.0) == pytest.approx(ahead)


# Dynamics


def test_the_damped_trend_is_exact_on_constants_and_half_a_line() -> None:
    flat, line = Trend(), Trend()
    for t in range(400):
        flat.push(1.5)
        line.push(2.0 - 0.01 * t)
    assert flat.forecast(20) == pytest.approx(1.5)
    assert line.slope == pytest.approx(-0.01, rel=1e-3)
    assert line.forecast(10) == pytest.approx(line.fast - 0.5 * 0.01 * (9 + 10), rel=1e-4)


def test_the_balanced_kl_has_the_value_and_the_gradients_it_should() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(MEMBERS, 4, GROUPS, CLASSES, generator=generator, dtype=torch.float64) + 1e-3 for _ in range(2))
    p, q = (p / p.sum(-1, keepdim=True)).requires_grad_(), (q / q.sum(-1, keepdim=True)).requires_grad_()
    kl = torch.distributions.kl_divergence(torch.distributions.Categorical(p), torch.distributions.Categorical(q))
    value = kl.sum(-1).clamp(min=FREE_NATS).mean()
    loss = kl_loss(p, q)
    assert float(loss.detach()) == pytest.approx(float(value.detach()), rel=1e-6)
    (plain,) = torch.autograd.grad((p.detach() * (p.detach().log() - q.log())).sum((-1, -2)).mean(), q)
    (prior,) = torch.autograd.grad(loss, q)
    assert torch.allclose(prior, KL_BALANCE * plain)


def test_samples_have_their_probabilities_and_their_gradient() -> None:
    p = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.03, 0.02]).expand(MEMBERS, 3000, GROUPS, CLASSES).clone().requires_grad_()
    drawn = sample(p, torch.Generator().manual_seed(0))
    shares = drawn.detach().unflatten(-1, (GROUPS, CLASSES)).mean((0, 1, 2))
    assert torch.allclose(shares, p.detach()[0, 0, 0], atol=0.01)
    drawn.sum().backward()
    assert p.grad is not None
    assert torch.equal(p.grad, torch.ones_like(p))


def test_probabilities_are_added_up_as_torch_adds_them_on_a_cpu() -> None:
    """Bit for bit, so that a run draws what it drew before."""
    p = torch.softmax(torch.randn(MEMBERS, 5000, GROUPS, CLASSES, generator=torch.Generator().manual_seed(0)), -1)
    assert torch.equal(cumulated(p), p.cumsum(-1))


def waves(n: int) -> list[StepSignals]:
    """A loss with a slow wave that the learning rate announces: there is something to learn beyond the trend."""
    generator = np.random.default_rng(0)
    found = []
    for step in range(1, n + 1):
        phase = 2 * math.pi * step / 60
        loss = math.exp(0.7 + 0.25 * math.sin(phase) + 0.01 * float(generator.standard_normal()))
        lr = 1e-3 * math.exp(math.cos(phase))
        found.append(StepSignals(step, n, "full", loss, 1.0, lr, 0.0, 1.0, 1.0, 1.0))
    return found


def test_the_dynamics_model_learns_what_the_trend_does_not_know() -> None:
    steps, dynamics, errors = waves(640), Dynamics(1, 1e15), []
    for at, signals in enumerate(steps):
        dynamics.observe(signals)
        if at > 420 and dynamics.tick_count == 0 and at + 10 < len(steps):
            truth = np.mean([math.log(s.loss) for s in steps[at + 6 : at + 11]])
            made = dynamics.forecast(8)
            errors.append((abs(truth - made.trend), abs(truth - made.log_loss), made.sd))
    trend, model, _ = np.mean(errors, axis=0)
    assert dynamics.updates > 90
    assert model < 0.8 * trend
    inside = np.mean([error < 1.2816 * sd for _, error, sd in errors])
    assert 0.5 < inside <= 1.0


def test_the_model_costs_a_fixed_share_whatever_the_training() -> None:
    """The rule asks no clock: an update's time at 100 GFLOP/s against that of the steps between two."""
    for step_flops in (1e8, 1e10, 1e12):
        share = 1.2e9 / (update_interval(step_flops) * 5 * step_flops)
        assert share <= 0.01 or update_interval(step_flops) == 50
    assert update_interval(1e15) == 1


def test_a_restored_dynamics_model_goes_on_as_if_nothing_had_been() -> None:
    steps, one = waves(160), Dynamics(3, 1e15)
    for signals in steps[:113]:
        one.observe(signals)
    other = Dynamics(3, 1e15)
    other.load(through_json(one.state()))
    torch.rand(5)  # the training's generator is none of its
    for signals in steps[113:]:
        one.observe(signals)
        other.observe(signals)
    assert one.forecast(10) == other.forecast(10)
    assert torch.equal(one.flat, other.flat)
    with pytest.raises(CheckpointError):
        other.load(Part(one.state().tensors, {**one.state().values, "updates": "many"}))


# Benefit and tuning


@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_the_benefit_meter_finds_what_a_jump_brought(gain: float) -> None:
    """A falling loss with noise; every 24 steps a jump lowers it for good by `gain`."""
    generator, meter, found, lowered = np.random.default_rng(0), BenefitMeter(), [], 0.0
    for t in range(2400):
        if t > 100 and t % (3 * WINDOW) == 0:
            lowered += gain
            meter.jumped()
        measured = meter.push(math.exp(200.0 - lowered - 1e-3 * t + 0.02 * float(generator.standard_normal())))
        if measured is not None:
            found.append(measured)
    assert len(found) > 80
    assert np.mean(found) == pytest.approx(gain, abs=0.012)


def tuned(losses: list[float], norms: list[float], lr: float = 1e-3) -> tuple[AutoTuning, list[Any]]:
    tuning, actions = AutoTuning(1.0), []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
        actions += tuning.observe(StepSignals(step, len(losses), "full", loss, norm, lr * tuning.lr_factor))
    return tuning, actions


def test_clipping_follows_the_percentile() -> None:
    norms = np.random.default_rng(0).uniform(0.1, 0.5, 300).tolist()
    tuning, actions = tuned([2.0 - 0.004 * t for t in range(300)], norms)
    assert tuning.clip == pytest.approx(float(np.percentile(norms, 90)), rel=0.1)
    assert percentile(norms, 90.0) == pytest.approx(float(np.percentile(norms, 90)))
    assert {action.key for action in actions} == {"train.grad_clip_norm"}
    assert all("percentile" in action.reason for action in actions)


def test_a_plateau_restarts_a_few_times_and_falling_rates_do_not() -> None:
    n = 4000
    tuning, actions = tuned([2.0] * n, [0.3] * n)
    restarts = [action for action in actions if "restart" in action.reason]
    assert len(restarts) == MAX_RESTARTS == tuning.restarts
    assert tuning.lr_factor == pytest.approx(1.0)
    assert restarts[0].new == pytest.approx(1.5)
    assert n > RESTART_STEPS
    decaying = AutoTuning(1.0)
    for step in range(1, 1500):
        decaying.observe(StepSignals(step, 1500, "full", 2.0, 0.3, 1e-3 * (1 - step / 1501)))
    assert decaying.restarts == 0


def test_the_gradient_band_acts_within_its_bounds() -> None:
    norms = [0.3] * 200 + [30.0 * 8**k for k in range(8) for _ in range(12)]
    tuning, actions = tuned([2.0 - 0.004 * t for t in range(len(norms))], norms)
    assert any("gradient norm" in action.reason for action in actions)
    assert BAND_RANGE[0] <= tuning.band < 1.0
    assert tuned([2.0 - 0.001 * t for t in range(600)], [0.3] * 600)[0].band == 1.0
