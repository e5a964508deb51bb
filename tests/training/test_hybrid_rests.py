"""A predictor that cannot jump before long is shown nothing, and begins anew where it looks again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpuworkbench.hybrid.advice.bandit import BanditAdvice
from gpuworkbench.hybrid.advice.shadow import ShadowAdvice
from gpuworkbench.hybrid.predictors.base import Predictor
from tests.fixtures.toy_training import ToyTraining
from tests.training.test_hybrid_candidates import on_a_quadratic


class Watches(Predictor):
    """Proposes nothing and writes down the steps that it is shown, and where the path began anew."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shown: list[int] = []
        self.anew: list[int] = []

    def observe(self, step: int, until_jump: int) -> None:
        self.shown.append(step)

    def displaced(self) -> None:
        self.anew.append(self.shown[-1] if self.shown else -1)

    def propose(self, horizon: int, step: int) -> None:
        pass


def watched(predictor: str, **keys: Any) -> tuple[ToyTraining, Watches]:
    training = on_a_quadratic(predictor, "", **keys)
    candidate = training.trainer.candidates.chosen
    candidate.predictor = Watches(training.trainer.body, training.trainer.config, 0)
    return training, candidate.predictor


@pytest.mark.parametrize(("predictor", "phases"), [("null", 1), ("subspace", 2)])
def test_while_prediction_is_off_nobody_watches_but_before_the_next_try(predictor: str, phases: int) -> None:
    """The ten steps of each of the last full phases before it."""
    training, watches = watched(predictor, exploration=99)
    training.train(3)
    advice = training.trainer.bandit
    assert isinstance(advice, BanditAdvice)
    advice.bandit.is_off, advice.bandit.retry_after = True, 5
    watches.shown.clear()
    training.train(60)
    (tried,) = {jump["step"] for jump in training.of_type("prediction")}
    assert tried == 2 + 5 * 10
    before = [step for step in sorted(set(watches.shown)) if step <= tried]
    assert before == [2 + 10 * (5 - phases) + n for n in range(10 * phases + 1)]
    assert len(watches.anew) == 1, "after the rest"


def test_a_gate_that_has_closed_for_good_ends_the_watching() -> None:
    training, watches = watched("random", exploration=1)
    training.train()
    (jump,) = {jump["step"] for jump in training.of_type("prediction")}
    assert not training.of_type("prediction")[0]["accepted"], "nothing moved, which is no improvement"
    assert max(watches.shown) <= jump


def test_after_its_window_a_predictor_watches_no_more() -> None:
    training, watches = watched("ema_trend", exploration=99)
    training.trainer.bandit.judged = lambda outcome: None  # type: ignore[method-assign]  # it would switch it off
    training.train()
    assert 0.7 * 400 - 12 < max(watches.shown) <= 0.7 * 400


def test_nobody_proposes_in_shadow_while_at_rest() -> None:
    """What it saw is old by then, and would teach the corrector misses that no jump has."""
    training = on_a_quadratic("ema_trend", "", exploration=99, corrector=True)
    training.trainer.bandit.judged = lambda outcome: None  # type: ignore[method-assign]  # it would switch it off
    training.train()
    shadow = training.trainer.residuals
    assert isinstance(shadow, ShadowAdvice)
    assert shadow.store.seen > 0
    assert max(residual.step for residual in shadow.store.kept) <= 0.7 * 400 + shadow.horizon


def test_an_average_after_a_rest_is_one_of_a_single_phase() -> None:
    """Slow weights from before the rest would pull back over all of it."""
    training = on_a_quadratic("outer_nesterov", "", exploration=99, outer_momentum=0.0, outer_lr=1.0)
    training.train(3)
    advice = training.trainer.bandit
    assert isinstance(advice, BanditAdvice)
    advice.bandit.is_off, advice.bandit.retry_after = True, 5
    training.train(39)
    begun = training.model.flat.detach().clone()  # step 42: the last full phase begins
    training.train(10)
    ended = training.model.flat.detach().clone()
    assert training.trainer.before_step() is None
    assert training.of_type("prediction")[0]["step"] == 52
    torch.testing.assert_close(
        training.trainer.body.copies()["h.0"], ended[:4], msg="eta 1, mu 0 stays at the fast ones"
    )
    slow = training.trainer.candidates.chosen.predictor.slots["momentum"]
    torch.testing.assert_close(torch.cat([slow["h.0"], slow["h.1"]]), begun - ended)
