"""Several predictors in one run: the bandit's choice decides who jumps, by which rule, and how far."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.loader import Override
from gpuworkbench.config.predictors import predictor_state_bytes, spec_of
from gpuworkbench.errors import ConfigError
from gpuworkbench.hybrid.advice.bandit import BanditAdvice, arms_of
from gpuworkbench.hybrid.bandit import OFF, Arm
from gpuworkbench.hybrid.candidates import Candidates
from gpuworkbench.hybrid.components import Outcome, Plan
from gpuworkbench.hybrid.cost import Costs, cost_table
from gpuworkbench.hybrid.signals import StepSignals
from gpuworkbench.hybrid.trainer import HybridTrainer
from gpuworkbench.launch.fork import fork
from tests.fixtures.local_run import LocalRuns, final_tensors, killed
from tests.fixtures.toy_training import ToyTraining
from tests.training.test_hybrid_predictors import Tied, full_phase, make, values, walk
from tests.training.test_hybrid_resume import SETS, STEPS, told

SEVERAL: dict[str, Any] = {
    **SETS,
    "optimizer.lr": 1e-4,
    "hybrid.predictor": "line_jump",
    "hybrid.bandit": True,
    "hybrid.bandit_predictors": "outer_nesterov, null,ema_trend",
    "hybrid.max_predict_steps": 5,
    "hybrid.exploration": 9,
    "train.max_steps": 3 * STEPS,
    "eval.interval_steps": 3 * STEPS,
}
PHASES: dict[str, Any] = {"warmup_steps": 2, "full_steps": 10, "correct_steps": 2, "probe_sequences": 2}
EIGENVALUES = torch.tensor([1.0, 1.0, 0.3, 0.3, 0.1, 0.1, 0.03, 0.03])


def on_a_quadratic(predictor: str, others: str, **keys: Any) -> ToyTraining:
    """Gradient descent, whose path every extrapolation shortens."""
    training = ToyTraining(
        torch.linspace(1, 2, 8),
        lambda w: (EIGENVALUES * w.square()).sum() / 2,
        lambda _step, w: EIGENVALUES * w,
        lr=0.05,
        **{"predictor": predictor, "bandit": True, "bandit_predictors": others, "max_steps": 400, **PHASES, **keys},
    )
    return by_the_table(training)


def by_the_table(training: ToyTraining) -> ToyTraining:
    """Its bandit reads no clock, as in exact mode."""
    assert isinstance(training.trainer.bandit, BanditAdvice)
    training.trainer.bandit.costs.is_exact = True
    return training


def test_each_is_tried_at_its_horizons_and_named_where_it_jumps() -> None:
    training = on_a_quadratic("null", "subspace,random", exploration=40)
    training.train()
    jumps = training.of_type("prediction")
    assert {jump["predictor"] for jump in jumps} == {"null", "subspace", "random"}
    for jump in jumps:
        norm = jump["delta_norm"]
        assert (norm == 0.0) == (jump["predictor"] == "null")
        assert (jump["horizon_steps"] == 10) == (jump["predictor"] == "null")
        if spec_of(jump["predictor"]).rule == "improve":
            assert jump["accepted"] == (jump["probe_after"] < jump["probe_before"])
    reasons = [reason for _, phase, reason in training.phases.changes if phase == "predict"]
    assert {reason.partition(":")[0] for reason in reasons} == {"null", "subspace", "random"}
    assert {"horizon 10", "horizon 5", "horizon 2", "horizon 1"} == {reason.split("; ")[1] for reason in reasons}


def test_the_one_that_pays_is_chosen_more_and_more() -> None:
    """A falling loss with noise, which jumps of one predictor lower for good and those of the other do not."""
    config = HybridConfig(enabled=True, predictor="null", bandit=True, bandit_predictors="outer_nesterov")
    advice = BanditAdvice(arms_of(config), Costs(cost_table(1000, 100, 50, 4000), is_exact=True))
    generator, lowered, chosen = np.random.default_rng(0), 0.0, []
    for step in range(1, 1200):
        if step % 12 == 0:
            plan = advice.plan(step, {"null": 1.0, "outer_nesterov": 1.0})
            chosen.append(plan.predictor)
            lowered += 0.1 if plan.predictor == "outer_nesterov" else 0.0
            assert plan.horizon == (None if plan.blocked else 20)
            if not plan.blocked:
                advice.judged(Outcome(step, 20, True, 1.0, 1.0, 2))
        loss = math.exp(200.0 - lowered - 1e-3 * step + 0.02 * float(generator.standard_normal()))
        advice.observe(StepSignals(step, 1200, "full", loss, 1.0, 1e-3))
    assert set(chosen[:2]) == {"null", "outer_nesterov"}
    assert chosen[40:].count("outer_nesterov") > 0.8 * len(chosen[40:])


def test_one_that_may_not_jump_now_leaves_the_choice_to_the_others() -> None:
    """ema_trend rests in the first 13 % and the last 30 % of a run."""
    training = on_a_quadratic("ema_trend", "null", exploration=100)
    training.train()
    begun = [(step, reason.partition(":")[0]) for step, phase, reason in training.phases.changes if phase == "predict"]
    assert {name for step, name in begun if 60 < step < 250} == {"ema_trend", "null"}
    assert {name for step, name in begun if step < 0.13 * 400} == {"null"}
    assert {name for step, name in begun if step > 0.7 * 400} == {"null"}


def test_the_gate_knows_each_predictor_by_its_own_record() -> None:
    """Around a minimum a random direction leads away and is undone, an average is kept: one gate closes."""

    def gradient(step: int, w: torch.Tensor) -> torch.Tensor:
        return w + torch.randn(w.shape, generator=torch.Generator().manual_seed(step))

    def loss(w: torch.Tensor) -> torch.Tensor:
        return 1.0 + w.square().mean()

    keys: dict[str, Any] = {"predictor": "random", "bandit_predictors": "outer_nesterov", "outer_lr": 0.6}
    training = ToyTraining(torch.zeros(400), loss, gradient, lr=0.2, bandit=True, exploration=2, **keys, **PHASES)
    by_the_table(training).train()
    jumps = training.of_type("prediction")
    random = [jump for jump in jumps if jump["predictor"] == "random"]
    assert [(jump["exploration"], jump["accepted"]) for jump in random] == [(True, False)] * 2
    assert [jump for jump in jumps if jump["predictor"] == "outer_nesterov" and not jump["exploration"]]
    records = {candidate.name: candidate for candidate in training.trainer.candidates}
    assert (records["random"].predictions, records["random"].acceptance.rate()) == (2, 0.0)
    rate = records["outer_nesterov"].acceptance.rate()
    assert rate is not None
    assert rate > 0.6


# What the others make of a jump

OBSERVERS = ("random", "outer_nesterov", "ema_trend", "subspace", "linear", "mlp")


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_jump_of_another_is_no_part_of_the_path(name: str) -> None:
    """What it proposes after the jump and another phase is what it proposes where the weights were not moved."""
    proposals = []
    for jumps in (False, True):
        model = Tied()
        predictor = make(name, model)
        step = full_phase(predictor, model)
        if jumps:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.5 * torch.ones_like(parameter))
        predictor.displaced()  # the other of the pair counts from here as well
        step = full_phase(predictor, model, step)
        before = values(model)
        assert predictor.ready() == ""
        predictor.propose(4, step)
        proposals.append({key: value - before[key] for key, value in values(model).items() if key != "frozen"})
    for key, delta in proposals[0].items():
        torch.testing.assert_close(proposals[1][key], delta, rtol=1e-3, atol=1e-5)


def test_a_step_across_a_jump_is_not_repeated() -> None:
    model = Tied()
    predictor = make("line_jump", model)
    step = full_phase(predictor, model)
    assert predictor.ready() == ""
    predictor.displaced()
    assert predictor.ready() == "the step to repeat has not been seen"
    full_phase(predictor, model, step, steps=2)
    assert predictor.ready() == ""


@pytest.mark.parametrize("name", [*OBSERVERS, "line_jump", "null"])
def test_before_it_has_seen_anything_a_jump_is_none_of_its_business(name: str) -> None:
    predictor = make(name, Tied())
    predictor.displaced()
    assert predictor.slots == {}


class Hears:
    """Stands for a predictor and writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.told.append(name)


def test_who_hears_of_what() -> None:
    config = HybridConfig(enabled=True, predictor="null", bandit=True, bandit_predictors="random")
    candidates = Candidates(make("null", Tied()).body, config, 0)
    for candidate in candidates:
        candidate.predictor = Hears()  # type: ignore[assignment]
    candidates.choose("random")
    candidates.judged(accepted=False)
    candidates.judged(accepted=True)
    candidates.rolled_back(stood=True)
    mine, its = (candidate.predictor.told for candidate in candidates)  # type: ignore[attr-defined]
    assert its == ["rejected", "accepted", "rejected"]
    assert mine == ["displaced", "displaced"], "a jump undone at once is not seen"
    assert candidates.all[1].acceptance.rate() == 0.0
    assert candidates.all[0].acceptance.rate() is None
    candidates.judged(accepted=True)
    candidates.rolled_back(stood=False)
    assert candidates.all[1].acceptance.rate() == 1 / 3, "true steps without a jump say nothing of an earlier one"


# What it costs, and what a checkpoint holds


def test_the_planner_counts_each() -> None:
    names = ("outer_nesterov", "subspace", "line_jump")
    config = HybridConfig(enabled=True, bandit=True, bandit_predictors=" subspace,line_jump ")
    assert predictor_state_bytes(config, 1000) == 1000 * (8 + 24 + 4)
    model = Tied()
    candidates = Candidates(make("null", model).body, config, 0)
    for phase in range(8):
        for candidate in candidates:
            candidate.predictor.observe(phase, 20 if not phase else 1)
        walk(model, phase)
    for step in range(8, 60):
        for candidate in candidates:
            candidate.observe(step, 1, rests=False)
    assert [candidate.name for candidate in candidates] == list(names)
    total = sum(candidate.predictor.num_bytes for candidate in candidates)
    assert total == predictor_state_bytes(config, candidates.body.n_elements)
    off = HybridConfig(enabled=True, bandit_predictors="subspace")
    assert predictor_state_bytes(off, 1000) == 8000, "without the bandit nobody chooses them"


def test_killed_anywhere_it_is_the_same_run(local: LocalRuns) -> None:
    """Within a prediction too, where the next jump must be by the predictor that has begun."""
    whole = local.trained("whole", SEVERAL)
    jumps = local.events(whole, "prediction")
    assert {jump["predictor"] for jump in jumps} == {"line_jump", "outer_nesterov", "null", "ema_trend"}
    inside = [event["step"] for event in local.events(whole, "step") if event["phase"] == "predict"]
    assert inside
    assert any(
        len({j["step"] for j in jumps if j["predictor"] == "line_jump" and s - 1 <= j["step"] <= s}) == 2
        for s in inside
    )
    for number, steps in enumerate(((8, 9, 22), inside[:2], inside[-1:])):
        cut = local.create(f"cut-{number}", SEVERAL)
        for step in steps:
            killed(local.open(cut), step)
        assert local.attempt(cut) == 0
        assert final_tensors(cut, 3 * STEPS) == final_tensors(whole, 3 * STEPS)
        assert told(local, cut) == told(local, whole)
    names = {path.name for path in whole.checkpoint(3 * STEPS).glob("predictor*.safetensors")}
    assert names == {"predictor.safetensors", "predictor_outer_nesterov.safetensors", "predictor_ema_trend.safetensors"}


def test_a_fork_may_have_others(local: LocalRuns) -> None:
    """What is new begins empty, what was learnt of other arms is passed over."""
    parent = local.trained("parent", SEVERAL)
    sets = {"hybrid.predictor": "subspace", "hybrid.bandit_predictors": "null", "train.max_steps": 3 * STEPS + 15}
    overrides = tuple(Override(key, value, "--set") for key, value in sets.items())
    other = fork(parent, local.workspace.runs, sets=overrides, run_id="other", environ={})
    run = local.open(other)
    assert isinstance(run.hybrid, HybridTrainer)
    assert isinstance(run.hybrid.bandit, BanditAdvice)
    assert sum(run.hybrid.bandit.bandit.pulls) == 0
    records = {candidate.name: candidate for candidate in run.hybrid.candidates}
    assert records["subspace"].predictions == 0
    assert records["null"].predictions > 0, "it was there before"
    run.events.close()
    assert local.attempt(other) == 0


def test_a_fork_within_a_prediction_has_no_use_for_jumps_of_one_it_has_not(local: LocalRuns) -> None:
    """The jumps that were planned are nobody's: they are not made by one that has seen nothing."""
    parent = local.create("inside", SEVERAL)
    whole = local.trained("uncut", SEVERAL)
    inside = [event["step"] for event in local.events(whole, "step") if event["phase"] == "predict"]
    killed(local.open(parent), inside[0])
    sets = {"hybrid.predictor": "subspace", "hybrid.bandit_predictors": "null", "train.max_steps": 3 * STEPS}
    overrides = tuple(Override(key, value, "--set") for key, value in sets.items())
    other = fork(parent, local.workspace.runs, sets=overrides, run_id="inside-other", environ={})
    assert local.attempt(other) == 0
    begun = local.events(other, "phase_changed")
    assert begun[0]["to_phase"] == "predict"
    assert begun[1]["step"] == begun[0]["step"]
    assert not [jump for jump in local.events(other, "prediction") if jump["step"] == begun[0]["step"]]


def test_a_checkpoint_of_a_single_predictors_run_of_before_is_understood(local: LocalRuns) -> None:
    """Until there could be several, the record stood without a name."""
    run = local.open(local.create("older", {**SETS, "hybrid.predictor": "null"}))
    trainer = run.hybrid
    assert isinstance(trainer, HybridTrainer)
    part = trainer.state()
    old = {key: value for key, value in part.values.items() if key != "candidates"}
    old["acceptance"] = {"outcomes": [True, False, True, True]}
    old["controller"] = {**old["controller"], "predictions": 4}
    part.values = old
    trainer.load(part)
    assert trainer.candidates.chosen.acceptance.rate() == 0.75
    assert trainer.candidates.chosen.predictions == 4
    run.events.close()


# The choice itself


def test_off_is_said_even_where_the_gate_lets_nobody_through() -> None:
    training = on_a_quadratic("random", "null")
    advice = training.trainer.bandit
    assert isinstance(advice, BanditAdvice)
    assert advice.plan(1, {}) == Plan()
    advice.bandit.is_off = True
    assert advice.plan(1, {}).blocked.startswith("prediction is off: measured benefit")
    assert advice.arms == (Arm("random", 1), Arm("null", 10), Arm("random", 2), Arm("random", 5))
    assert advice.bandit.waits == 0, "no decision was made"
    advice.bandit.total, advice.bandit.count = -3.0, 2
    assert advice.plan(1, {}).blocked == "prediction is off: measured benefit -1.5 is not above 0"
    advice.bandit.total = 3.0
    assert advice.plan(1, {}).blocked == "prediction is off: no benefit is expected now (measured so far: +1.5)"


def test_where_only_what_does_not_pay_can_jump_none_does_and_nothing_is_switched_off() -> None:
    training = on_a_quadratic("random", "null")
    advice = training.trainer.bandit
    assert isinstance(advice, BanditAdvice)
    bandit, context = advice.bandit, advice._context(1.0)
    for _ in range(60):
        bandit.reward(Arm("null", 10), context, -1.0)
        bandit.reward(Arm("random", 5), context, 2.0)
        for horizon in (1, 2):
            bandit.reward(Arm("random", horizon), context, -1.0)
    assert not bandit.is_off
    assert bandit.choose(context, {"null"}).arm.predictor == OFF
    assert bandit.choose(context, {"null", "random"}).arm == Arm("random", 5)
    assert bandit.choose(context, set()).arm.predictor == OFF
    assert not bandit.is_off
    assert advice.plan(5, {"null": 1.0}).blocked == "no prediction: what can jump now did not pay"


def test_each_arm_is_valued_in_its_own_context() -> None:
    training = on_a_quadratic("null", "subspace")
    bandit = training.trainer.bandit.bandit  # type: ignore[attr-defined]
    contexts = [[1.0, 0.1 * n, 0.2 * n, 0.0, 0.0, 0.0] for n in range(len(bandit.arms))]
    for _ in range(3):
        for arm, context in zip(bandit.arms, contexts, strict=True):
            bandit.reward(arm, context, 1.0 + context[1])
    estimates, widths = bandit.expected(contexts)
    for number, context in enumerate(contexts):
        alone = bandit.expected(context)
        assert estimates[number] == pytest.approx(alone[0][number])
        assert widths[number] == pytest.approx(alone[1][number])
    assert len(set(estimates)) > 1


def refused(local: LocalRuns, sets: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        local.create("refused", {**SETS, **sets})
    return caught.value.line()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("line_jmp", "hybrid.bandit_predictors: 'line_jmp' is not known; did you mean 'line_jump'?"),
        ("null,,random", "hybrid.bandit_predictors: '' is not known"),
        ("null,null", "'null' is there twice"),
        ("null, outer_nesterov", "'outer_nesterov' is hybrid.predictor already"),
        ("null,learned", "hybrid.bandit_predictors: 'learned' reads the dynamics model, which is off"),
    ],
)
def test_refusals(local: LocalRuns, names: str, words: str) -> None:
    assert words in refused(local, {"hybrid.bandit": True, "hybrid.bandit_predictors": names})


def test_without_a_bandit_nobody_could_choose_them(local: LocalRuns) -> None:
    line = refused(local, {"hybrid.bandit_predictors": "null"})
    assert "hybrid.bandit_predictors: has no effect: hybrid.bandit is off" in line
    assert line.endswith("set hybrid.bandit = true, or leave it out")


def test_the_controls_may_be_arms(local: LocalRuns) -> None:
    sets = {"hybrid.bandit": True, "hybrid.bandit_predictors": "null, random"}
    run = local.open(local.create("controls", {**SETS, **sets}))
    assert isinstance(run.hybrid, HybridTrainer)
    assert [candidate.name for candidate in run.hybrid.candidates] == ["outer_nesterov", "null", "random"]
    run.events.close()
