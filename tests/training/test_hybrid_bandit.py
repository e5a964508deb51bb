"""The bandit: finds the arm that pays, says off where none does, and decides by no clock."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gpuworkbench.hybrid.bandit import CONTEXT, OFF, Arm, LinUcb, advantage, context_of
from gpuworkbench.hybrid.cost import Costs, cost_table

ARMS = tuple(Arm(name, horizon) for name in ("ema_trend", "line_jump") for horizon in (2, 5, 10))


def play(bandit: LinUcb, means: dict[Arm, float], n: int, seed: int = 0, noise: float = 1.0) -> list[Arm]:
    """The arms chosen over `n` decisions where an arm's reward is its mean plus noise."""
    generator, chosen = np.random.default_rng(seed), []
    for i in range(n):
        context = context_of(i / n, 0.5, 0.0, 0.0, 0.0)
        arm = bandit.choose(context).arm
        chosen.append(arm)
        if arm.predictor != OFF:
            bandit.reward(arm, context, means.get(arm, -1.0) + noise * float(generator.standard_normal()))
    return chosen


@pytest.mark.parametrize("paying", [ARMS[0], ARMS[4]])
@pytest.mark.parametrize("unit", [1e-4, 1.0])
def test_the_arm_that_pays_is_found(paying: Arm, unit: float) -> None:
    """Whatever the unit of the rewards; the others lose."""
    shares = []
    for seed in range(10):
        means = {arm: (1.0 if arm == paying else -0.5) * unit for arm in ARMS}
        late = play(LinUcb(ARMS), means, 150, seed, noise=0.5 * unit)[75:]
        shares.append(late.count(paying) / len(late))
    assert np.mean(shares) > 0.85
    assert min(shares) > 0.5


def test_where_nothing_pays_prediction_is_switched_off() -> None:
    for seed in range(10):
        bandit = LinUcb(ARMS)
        chosen = [arm.predictor for arm in play(bandit, dict.fromkeys(ARMS, -0.5), 150, seed)]
        assert bandit.is_off
        assert chosen[75:].count(OFF) / 75 > 0.85
        assert bandit.mean_reward is not None
        assert bandit.mean_reward < 0


def test_no_benefit_at_all_is_off_too() -> None:
    """Rewards that are 0 on average: no evidence for prediction, and it costs."""
    late = [play(LinUcb(ARMS[:2]), dict.fromkeys(ARMS, -1e-3), 400, seed)[200:] for seed in range(10)]
    assert np.mean([arms.count(Arm(OFF, 0)) / len(arms) for arms in late]) > 0.5


def test_what_pays_later_is_found_by_a_retry() -> None:
    bandit = LinUcb(ARMS[:2])
    play(bandit, dict.fromkeys(ARMS, -1.0), 40, noise=0.1)
    assert bandit.is_off
    late = play(bandit, dict.fromkeys(ARMS, 1.0), 120, noise=0.1)
    assert not bandit.is_off
    assert OFF not in {arm.predictor for arm in late[-20:]}


def test_the_switch_says_why() -> None:
    bandit, context = LinUcb(ARMS[:1]), context_of(0.5, 0.5, 0.0, 0.0, 0.0)
    said = [bandit.reward(ARMS[0], context, -0.01) for _ in range(8)]
    choice = next(choice for choice in said if choice is not None)
    assert choice.switched
    assert "-0.01 per step's cost over 6 jumps" in choice.reason


def test_the_switch_does_not_call_a_benefit_none() -> None:
    """It paid once, and in this context it is not expected to: both are said."""
    bandit, early, late = LinUcb(ARMS[:1]), context_of(0.0, 0.5, 0.0, 0.0, 0.0), context_of(1.0, 0.5, 0.0, 0.0, 0.0)
    for _ in range(40):
        bandit.reward(ARMS[0], early, 0.03)
        bandit.reward(ARMS[0], late, -0.01)
    choice = bandit.choose(late)
    assert choice.switched
    assert "measured benefit +0.01 per step's cost over 80 jumps, but now the best arm is expected" in choice.reason


def test_estimates_are_the_ridge_regressions() -> None:
    """Against the closed form, without forgetting (one arm, few rewards, weights DECAY^age)."""
    bandit, generator = LinUcb(ARMS[:1]), np.random.default_rng(0)
    bandit.scale.mean, bandit.scale.variance, bandit.scale.decay, bandit.scale.count = 0.0, 1.0, 1.0, 10**9
    contexts = generator.uniform(-1, 1, (30, len(CONTEXT)))
    contexts[:, 0] = 1.0
    rewards = generator.standard_normal(30).clip(-2, 2)
    bandit.scale.push = lambda value: None  # type: ignore[method-assign]
    for context, reward in zip(contexts.tolist(), rewards.tolist(), strict=True):
        bandit.reward(ARMS[0], context, reward)
    age = np.arange(29, -1, -1)
    weights = 0.98**age
    gram = (contexts * weights[:, None]).T @ contexts + np.eye(len(CONTEXT))
    theta = np.linalg.solve(gram, (contexts * weights[:, None]).T @ rewards)
    x = contexts[3]
    estimates, widths = bandit.expected(x.tolist())
    assert estimates[0] == pytest.approx(theta @ x)
    assert widths[0] == pytest.approx(np.sqrt(x @ np.linalg.solve(gram, x)))


def test_a_restored_bandit_goes_on_as_if_nothing_had_been() -> None:
    one, other = LinUcb(ARMS), LinUcb(ARMS)
    play(one, {ARMS[2]: 0.3}, 60)
    part = one.state()
    part.values = json.loads(json.dumps(part.values))
    other.load(part)
    assert play(one, {ARMS[2]: 0.3}, 60, seed=1) == play(other, {ARMS[2]: 0.3}, 60, seed=1)


def test_the_advantage_is_what_the_jump_brought_beyond_training() -> None:
    assert advantage(drop=0.02, cost=0.5, full_rate=0.01) == pytest.approx((0.02 - 0.005) / 0.5)
    assert advantage(drop=0.0, cost=0.5, full_rate=0.01) == pytest.approx(-0.01)  # undone: its cost is lost


def test_exact_costs_ignore_the_clock_and_stay_with_the_run() -> None:
    table = cost_table(n_params=1000, tokens_per_step=100, probe_tokens=300, weight_bytes=4000)
    assert table["probe"] == pytest.approx(2 * 1000 * 300 / (6 * 1000 * 100 + 10 * 8 * 4000))
    exact, fast = Costs(table, is_exact=True), Costs(table, is_exact=False)
    for costs in (exact, fast):
        costs.note("step", 0.2)
        costs.note("probe", 0.1)
    assert exact.of(probe=2, copy=1) == pytest.approx(2 * table["probe"] + table["copy"])
    assert fast.of(probe=2, copy=1) == pytest.approx(2 * 0.5 + table["copy"])
    assert exact.of_jump(2, seconds=9.0) == pytest.approx(2 * table["probe"] + 3 * table["copy"])
    assert fast.of_jump(2, seconds=0.3) == pytest.approx(1.5)
    other = Costs(cost_table(7, 7, 7, 7), is_exact=True)
    other.load(exact.state())
    assert other.of(probe=1) == exact.of(probe=1)
