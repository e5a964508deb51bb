"""What a comparison trains next, whatever was done before; its configurations; its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.commands.bench_hybrid import chosen_arms
from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.schema import OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from gpuworkbench.errors import ConfigError, RunError, UsageError, WorkbenchError
from gpuworkbench.plan.hybrid_bench import (
    Arm,
    BenchPlan,
    Trial,
    Tuned,
    Work,
    edge_of_grid,
    grid_around,
    next_trials,
    steps_left,
    summary_of_tuning,
    tuned_of,
)
from gpuworkbench.plan.hybrid_bench_files import BenchFiles, default_directory, open_bench, stem_of
from gpuworkbench.plan.hybrid_configs import arm_config
from gpuworkbench.registry import PREDICTORS

PRESET = Tuned("cosine", 1e-3, None)
CONFIG = RunConfig(
    schema_version=1,
    model=Gpt2Config(vocab_size=256),
    train=TrainConfig(max_steps=1000, seed=5),
    optimizer=OptimizerConfig(lr=1e-3),
    schedule=ScheduleConfig(name="cosine", warmup_steps=20, min_lr_fraction=0.1),
)
ARMS = (
    Arm(name="baseline", what="tuned"),
    Arm(name="preset", what="untuned", is_tuned=False),
    Arm(name="own", what="at a rate of its own", sets={"optimizer.lr": 0.5}),
)


def plan_of(**changes: Any) -> BenchPlan:
    plan = BenchPlan(
        preset="p",
        label="p",
        optimizer="adamw",
        seeds=(5, 6),
        tuning_seeds=(105,),
        budgets=(10, 20, 40, 80),
        reference=40,
        schedules=("linear", "warmup_stable_decay"),
        rates=(1e-3, 2e-3, 4e-3),
        rate_factor=2.0,
        adapts=True,
        arms=ARMS,
        has_clock=False,
    )
    return msgspec.structs.replace(plan, **changes)


def landscape(work: Work) -> float | None:
    """The validation loss of a trial: lowest near 0.0028, lower with the second schedule; above 0.03 it diverges."""
    if work.lr > 0.03 and work.arm.startswith("tuning"):
        return None
    schedule = {"linear": 0.2, "warmup_stable_decay": 0.1}.get(work.schedule, 0.3)
    return 2 + schedule + math.log(work.lr / 0.0028) ** 2 / 10 - 0.1 * math.log(work.steps)


def done(work: Work) -> Trial:
    loss = landscape(work)
    return Trial(
        arm=work.arm,
        seed=work.seed,
        steps=work.steps,
        lr=work.lr,
        schedule=work.schedule,
        val_loss=loss,
        diverged="" if loss is not None else "loss is nan",
        cost_steps=work.steps,
        seconds=1.0,
        cpu_seconds=1.0,
    )


def finished(plan: BenchPlan, trials: list[Trial] | None = None) -> list[Trial]:
    trials = list(trials or [])
    while todo := next_trials(plan, PRESET, trials):
        trials.append(done(todo[0]))
        assert len(trials) < 200
    return trials


def test_the_baseline_is_tuned_first_and_on_seeds_that_are_never_measured() -> None:
    plan = plan_of()
    trials = finished(plan)
    tuning = [trial for trial in trials if trial.arm.startswith("tuning.")]
    assert trials[: len(tuning)] == tuning
    assert {trial.seed for trial in tuning} == {105}
    assert {trial.steps for trial in tuning} == {40}
    assert {trial.schedule for trial in tuning} == {"linear", "warmup_stable_decay"}
    assert {trial.seed for trial in trials[len(tuning) :]} == {5, 6}
    tuned = tuned_of(plan, PRESET, trials)
    assert tuned is not None
    assert tuned.schedule == "warmup_stable_decay"
    assert tuned.lr == pytest.approx(2.83e-3)  # halfway between two rates of the grid
    table = summary_of_tuning(plan, trials)
    assert [row["lr"] for row in table["linear"]] == sorted({t.lr for t in tuning if t.schedule == "linear"})
    assert min(row["val_loss"] or 9 for row in table["warmup_stable_decay"]) == tuned.val_loss


@pytest.mark.parametrize(
    ("rates", "edge"), [((0.1, 0.2), "lowest"), ((0.05, 0.1), "highest"), ((0.05, 0.1, 0.2), ""), ((0.1,), "only")]
)
def test_a_tuned_rate_at_the_edge_of_what_was_tried_is_told(rates: tuple[float, ...], edge: str) -> None:
    tuning = {"linear": [{"lr": rate, "val_loss": abs(rate - 0.1)} for rate in rates]}
    assert edge_of_grid(tuning, "linear", 0.1) == edge
    assert edge_of_grid({}, "linear", 0.1) == ""  # not tuned


def test_every_arm_is_trained_from_every_seed_at_every_budget_once() -> None:
    plan = plan_of()
    trials = [trial for trial in finished(plan) if not trial.arm.startswith("tuning.")]
    keys = [(trial.arm, trial.seed, trial.steps) for trial in trials]
    assert sorted(keys) == sorted((arm.name, s, b) for arm in ARMS for s in plan.seeds for b in plan.budgets)
    assert [seed for _, seed, _ in keys] == [5] * 12 + [6] * 12, "whole pairs come early"
    rates = {trial.arm: (trial.schedule, trial.lr) for trial in trials}
    assert rates["baseline"] == ("warmup_stable_decay", pytest.approx(2.83e-3))
    assert rates["preset"] == ("cosine", 1e-3)
    assert rates["own"] == ("warmup_stable_decay", 0.5)


def test_untuned_the_preset_is_the_baseline() -> None:
    plan = plan_of(schedules=())
    trials = finished(plan)
    assert len(trials) == 24
    assert {(t.schedule, t.lr) for t in trials if t.arm == "baseline"} == {("cosine", 1e-3)}


def test_where_every_rate_diverged_nothing_is_measured() -> None:
    plan = plan_of(rates=(1.0, 2.0), adapts=False)
    trials = finished(plan)
    assert all(trial.arm.startswith("tuning.") and trial.val_loss is None for trial in trials)
    assert len(trials) == 4
    assert tuned_of(plan, PRESET, trials) is None


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_from_whatever_was_done_it_ends_at_the_same_trials(data: st.DataObject) -> None:
    """Killed anywhere, even with files lost: the trials at the end are those of a run in one go."""
    plan = plan_of()
    whole = finished(plan)
    kept = data.draw(st.lists(st.sampled_from(whole), unique_by=stem_of))
    again = finished(plan, kept)
    assert {stem_of(trial) for trial in again} >= {stem_of(trial) for trial in whole}
    assert tuned_of(plan, PRESET, again) == tuned_of(plan, PRESET, whole)


def test_what_is_left_gets_less_and_ends_at_nothing() -> None:
    plan = plan_of(rates=(1e-3, 2e-3), adapts=False)
    trials: list[Trial] = []
    left = [steps_left(plan, PRESET, trials)]
    while todo := next_trials(plan, PRESET, trials):
        trials.append(done(todo[0]))
        left.append(steps_left(plan, PRESET, trials))
    assert left == sorted(left, reverse=True)
    assert left[0] == sum(trial.steps for trial in trials)
    assert left[-1] == 0


def test_the_grid_begins_at_the_presets_rate() -> None:
    assert grid_around(1.5e-3) == (1.5e-3, 3e-3, 6e-3, 1.2e-2)


def test_a_trial_has_its_whole_schedule_in_its_own_steps() -> None:
    work = Work("own", 7, 400, 3e-3, "warmup_stable_decay")
    config = arm_config(CONFIG, ARMS[0], work)
    assert (config.train.max_steps, config.train.seed, config.data.seed) == (400, 7, 7)
    assert (config.optimizer.lr, config.schedule.name) == (3e-3, "warmup_stable_decay")
    assert (config.schedule.warmup_steps, config.schedule.warmdown_steps) == (8, 160)
    assert config.schedule.min_lr_fraction == 0.1
    assert config.eval.interval_steps == 400
    linear = arm_config(CONFIG, ARMS[0], work._replace(schedule="linear"))
    assert linear.schedule.warmdown_steps == 0
    assert not linear.hybrid.enabled


def test_an_arm_without_prediction_keeps_its_state_where_it_is() -> None:
    config = msgspec.structs.replace(
        CONFIG,
        memory=msgspec.structs.replace(CONFIG.memory, optimizer_offload="predict_aware"),
        hybrid=msgspec.structs.replace(CONFIG.hybrid, enabled=True),
    )
    work = Work("own", 7, 400, 3e-3, "linear")
    jumps = Arm(name="jumps", what="", is_hybrid=True)
    offloads = {arm.is_hybrid: arm_config(config, arm, work).memory.optimizer_offload for arm in (ARMS[0], jumps)}
    assert offloads == {False: "none", True: "predict_aware"}


def test_a_preset_with_a_warm_down_keeps_its_share() -> None:
    stable = ScheduleConfig(name="warmup_stable_decay", warmup_steps=10, warmdown_steps=700)
    config = msgspec.structs.replace(CONFIG, schedule=stable)
    found = arm_config(config, ARMS[0], Work("baseline", 1, 200, 1e-3, "warmup_stable_decay"))
    assert (found.schedule.warmup_steps, found.schedule.warmdown_steps) == (2, 140)


def test_an_arms_keys_come_last_and_odd_ones_are_refused() -> None:
    work = Work("a", 7, 400, 3e-3, "linear")
    arm = Arm(name="a", what="", sets={"optimizer.lr": 0.5, "hybrid.outer_lr": 0.9})
    found = arm_config(CONFIG, arm, work)
    assert (found.optimizer.lr, found.hybrid.outer_lr) == (0.5, 0.9)
    with pytest.raises(ConfigError, match=r"the arm b: 'hybrid\.outer_l' is not a key"):
        arm_config(CONFIG, Arm(name="b", what="", sets={"hybrid.outer_l": 1}), work)
    with pytest.raises(ConfigError, match=r"the arm c: hybrid\.outer_lr = 99 is not a number"):
        arm_config(CONFIG, Arm(name="c", what="", sets={"hybrid.outer_lr": 99}), work)


def test_arms_that_are_named_twice_or_are_the_baseline_are_refused() -> None:
    with pytest.raises(UsageError, match="names null twice"):
        chosen_arms(["null", "null"], [], is_tuned=True)
    with pytest.raises(UsageError, match="the preset is the baseline"):
        chosen_arms(["preset"], [], is_tuned=False)
    assert [arm.name for arm in chosen_arms(["preset"], [], is_tuned=True)] == ["baseline", "preset"]


def test_an_arm_is_its_predictor_alone_unless_it_says_otherwise() -> None:
    """A preset's bandit would switch the controls off."""
    hybrid = msgspec.structs.replace(CONFIG.hybrid, bandit=True, bandit_predictors="null")
    config = msgspec.structs.replace(CONFIG, hybrid=hybrid)
    work = Work("a", 7, 400, 3e-3, "linear")
    plain = arm_config(config, Arm(name="random", what="", is_hybrid=True, sets={"hybrid.predictor": "random"}), work)
    assert (plain.hybrid.bandit, plain.hybrid.bandit_predictors) == (False, "")
    own = arm_config(config, Arm(name="own", what="", is_hybrid=True, sets={"hybrid.bandit": True}), work)
    assert own.hybrid.bandit


@pytest.mark.parametrize("is_tuned", [True, False])
def test_every_arm_that_there_is_can_be_trained(is_tuned: bool) -> None:
    """Each predictor of the registry, each control, whatever keys they need."""
    arms = chosen_arms(None, [], is_tuned=is_tuned)
    assert arms[0].name == "baseline"
    assert {arm.name for arm in arms} >= {"null", "random", "ema_eval", *PREDICTORS}
    assert ("preset" in {arm.name for arm in arms}) == is_tuned
    for arm in arms:
        found = arm_config(CONFIG, arm, Work(arm.name, 7, 400, 3e-3, "linear"))
        assert found.hybrid.enabled == arm.is_hybrid
        assert not arm.is_hybrid or found.hybrid.predictor == arm.name


def test_what_was_decided_is_written_once_and_before_any_trial(tmp_path: Path) -> None:
    root = tmp_path / "new" / "bench"
    files = open_bench(root, plan_of(), CONFIG)
    first, sha = files.preregistration.read_bytes(), files.preregistration_sha256()
    assert files.read_trials() == []
    registered = files.read_preregistration()
    assert registered.plan == plan_of()
    assert any("no measurable benefit" in line for line in registered.analysis)
    again = open_bench(root, plan_of(), CONFIG)
    assert (again.preregistration.read_bytes(), again.preregistration_sha256()) == (first, sha)
    assert files.read_config() == CONFIG


@pytest.mark.parametrize(
    ("plan", "config", "words"),
    [
        (plan_of(seeds=(5, 6, 7)), CONFIG, "holds another comparison: seeds: "),
        (plan_of(budgets=(10, 20, 40, 90)), CONFIG, "holds another comparison: budgets: "),
        (plan_of(), msgspec.structs.replace(CONFIG, optimizer=OptimizerConfig(lr=2e-3)), "optimizer.lr"),
    ],
)
def test_what_was_decided_is_not_changed_afterwards(
    tmp_path: Path, plan: BenchPlan, config: RunConfig, words: str
) -> None:
    open_bench(tmp_path, plan_of(), CONFIG)
    with pytest.raises(UsageError, match=words):
        open_bench(tmp_path, plan, config)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds files, and no comparison"):
        open_bench(tmp_path, plan_of(), CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(WorkbenchError):
        open_bench(Path("/dev/null/x"), plan_of(), CONFIG)


def test_trials_come_back_and_damaged_ones_are_to_do(tmp_path: Path) -> None:
    files = open_bench(tmp_path, plan_of(), CONFIG)
    trials = finished(plan_of())
    for trial in trials:
        files.write(files.trial(stem_of(trial)), trial)
    assert sorted(files.read_trials(), key=stem_of) == sorted(trials, key=stem_of)
    lost = files.trial(stem_of(trials[-1]))
    lost.write_bytes(lost.read_bytes()[:30])
    files.trial("other-1-1.0-1").write_bytes(files.trial(stem_of(trials[0])).read_bytes())
    assert len(files.read_trials()) == len(trials) - 1
    assert [work.stem for work in next_trials(plan_of(), PRESET, files.read_trials())] == [stem_of(trials[-1])]


def test_files_that_are_gone_are_an_error_in_a_line(tmp_path: Path) -> None:
    files = BenchFiles(tmp_path)
    with pytest.raises(RunError, match=r"preregistration\.json cannot be read"):
        files.read_preregistration()
    with pytest.raises(RunError, match=r"preregistration\.json cannot be read"):
        files.preregistration_sha256()


def test_the_same_request_finds_the_same_place() -> None:
    assert default_directory(plan_of(), CONFIG) == default_directory(plan_of(), CONFIG)
    assert default_directory(plan_of(seeds=(1, 2)), CONFIG) != default_directory(plan_of(), CONFIG)
