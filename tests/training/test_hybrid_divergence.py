"""The divergence monitor: silent on noise and on healthy runs, loud on what is broken."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gpuworkbench.hybrid.divergence import CRITICAL_LIMIT, DivergenceMonitor, Level, Verdict
from gpuworkbench.hybrid.oscillation import SLOWEST, WINDOW, fisher_tail, oscillation_share, significant_share
from gpuworkbench.hybrid.running import RunningLevel
from gpuworkbench.hybrid.signals import StepSignals
from tests.fixtures.recorded_signals import recorded

Change = Callable[[int, float, float], tuple[float, float]]


def noise(n: int, seed: int = 0, sd: float = 0.1) -> Iterator[StepSignals]:
    generator = np.random.default_rng(seed)
    losses, norms = 2.0 + sd * generator.standard_normal(n), np.exp(0.3 * generator.standard_normal(n))
    for step, (loss, norm) in enumerate(zip(losses.tolist(), norms.tolist(), strict=True), 1):
        yield StepSignals(step, n, "full", loss, norm, 1e-3)


def alarms(steps: Iterator[StepSignals], change: Change = lambda step, *pair: pair) -> list[tuple[int, Verdict]]:
    """What is news, by step, when loss and gradient norm are what `change(step, loss, norm)` makes of them."""
    monitor, found = DivergenceMonitor(2.5), []
    for signals in steps:
        loss, norm = change(signals.step, signals.loss, signals.grad_norm)
        verdict = monitor.observe(signals._replace(loss=loss, grad_norm=norm))
        if verdict.is_news:
            found.append((signals.step, verdict))
    return found


def test_white_noise_does_not_alarm_in_a_hundred_thousand_steps() -> None:
    assert alarms(noise(100_000)) == []


@pytest.mark.parametrize("name", ["quickstart", "small"])
def test_a_healthy_run_does_not_alarm(name: str) -> None:
    assert alarms(iter(recorded(name))) == []


@pytest.mark.parametrize("name", ["quickstart", "small"])
@pytest.mark.parametrize(
    ("change", "signal", "level", "within"),
    [
        (lambda s, loss, g: (math.nan, g) if s == 100 else (loss, g), "nonfinite loss", Level.critical, 0),
        (lambda s, loss, g: (loss, math.inf) if s == 100 else (loss, g), "nonfinite gradient norm", Level.critical, 0),
        (lambda s, loss, g: (loss + 3.0, g) if s == 100 else (loss, g), "loss spike", Level.warning, 0),
        (lambda s, loss, g: (loss, g * 20) if s == 100 else (loss, g), "exploding gradient", Level.warning, 0),
        (lambda s, loss, g: (loss, g * 500) if s == 100 else (loss, g), "exploding gradient", Level.critical, 0),
        (lambda s, loss, g: (loss, g * 1e-4) if s >= 100 else (loss, g), "vanishing gradient", Level.warning, 6),
        (lambda s, loss, g: (loss, 0.0) if s >= 100 else (loss, g), "vanishing gradient", Level.warning, 6),
        (lambda s, loss, g: (loss + 0.03 * max(0, s - 99), g), "loss", Level.caution, 60),
        (lambda s, loss, g: (loss + 0.8 * (-1) ** s * (s >= 100), g), "oscillation", Level.warning, 90),
        (lambda s, loss, g: (loss + 0.8 * math.sin(s) * (s >= 100), g), "oscillation", Level.warning, 90),
    ],
    ids=["nan", "inf", "spike", "x20", "x500", "x1e-4", "zero", "drift", "alternating", "period 6"],
)
def test_what_is_broken_alarms(name: str, change: Change, signal: str, level: Level, within: int) -> None:
    found = [(step, v) for step, v in alarms(iter(recorded(name)), change) if v.signal.startswith(signal)]
    assert found, "no alarm"
    step, verdict = found[0]
    assert 100 <= step <= 100 + within
    assert max(v.level for _, v in found) >= level
    assert verdict.actions


def test_a_batch_that_would_do_harm_is_skipped_before_its_update() -> None:
    monitor = DivergenceMonitor(2.5)
    for signals in noise(100):
        assert monitor.before_update(signals.step, signals.loss, signals.grad_norm).actions == ()
        monitor.observe(signals)
    assert monitor.before_update(101, math.nan, 1.0).actions == ("skip_batch",)
    monitor.observe(next(noise(1)))
    assert monitor.before_update(140, 2.0, 1e6).actions == ("skip_batch",)
    assert monitor.before_update(180, 2.0, 5.0).actions == ()


def test_a_run_that_stays_critical_is_stopped() -> None:
    monitor, actions = DivergenceMonitor(2.5), []
    for signals in itertools.islice(noise(400), 50):
        monitor.observe(signals)
    for step in range(51, 51 + 10 * CRITICAL_LIMIT, 5):
        actions.append(monitor.observe(StepSignals(step, 400, "full", math.nan, 1.0, 1e-3)).actions)
        monitor.observe(StepSignals(step + 1, 400, "full", 2.0, 1.0, 1e-3))
    assert actions[:CRITICAL_LIMIT] == [("rollback", "lr_cut", "force_full", "predictor_reset")] * CRITICAL_LIMIT
    assert actions[CRITICAL_LIMIT] == ("stop",)


def test_predictions_that_are_wrong_again_and_again_reset_the_predictor() -> None:
    monitor = DivergenceMonitor(2.5)
    for signals in noise(100):
        monitor.observe(signals)
    generator = np.random.default_rng(1)
    fair = [monitor.prediction(100, 2.0, 2.0 + 0.1 * generator.standard_normal()) for _ in range(1000)]
    assert not any(verdict.is_news for verdict in fair)
    wrong = [monitor.prediction(101, 2.0, 2.5) for _ in range(6)]
    assert [verdict.actions for verdict in wrong if verdict.is_news] == [("predictor_reset", "shorter_horizon")]


def test_a_level_that_lasts_is_not_told_each_step() -> None:
    found = alarms(noise(300), lambda step, loss, norm: (loss, norm * 20.0 ** (step >= 100)))
    assert 1 <= len(found) <= 4


def test_a_restored_monitor_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    steps = list(noise(260, seed=3))
    one = DivergenceMonitor(2.5)
    for signals in steps[:130]:
        one.observe(signals)
    one.before_update(131, math.nan, 1.0)
    part = one.state()
    part.values = json.loads(json.dumps(part.values))
    other = DivergenceMonitor(2.5)
    other.load(part)
    for signals in steps[130:]:
        broken = signals._replace(loss=signals.loss + 2.0 * (signals.step % 40 == 0))
        assert one.observe(broken) == other.observe(broken)
    assert one.state() == other.state()


# Against closed forms


def test_the_running_deviation_is_that_of_the_noise() -> None:
    values = np.random.default_rng(0).standard_normal(20_000) * 0.3 + 5.0
    level = RunningLevel(0.99, clip=50.0)
    seen = []
    for value in values.tolist():
        level.push(value)
        seen.append(level.variance)
    assert np.mean(seen[2000:]) == pytest.approx(0.09, rel=0.03)
    assert level.mean == pytest.approx(5.0, abs=0.1)


def test_the_oscillation_test_has_fishers_probabilities() -> None:
    """The tail at a level that noise does reach, against its frequency; and Fisher's own formula for large shares."""
    n = WINDOW // 2 + 1 - SLOWEST
    generator = np.random.default_rng(0)
    shares = [oscillation_share(generator.standard_normal(WINDOW).tolist()) for _ in range(20_000)]
    for probability in (0.5, 0.1, 0.01):
        exceeded = np.mean([share > significant_share(WINDOW, probability) for share in shares])
        assert exceeded == pytest.approx(probability, rel=0.25, abs=0.003)
    assert fisher_tail(0.6, n) == pytest.approx(n * 0.4 ** (n - 1))
