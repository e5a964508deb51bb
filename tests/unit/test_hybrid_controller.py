"""The phase machine: every legal move and no other, for the reasons it names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.config.hybrid_section import HybridConfig
from gpuworkbench.config.loader import Override
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.errors import ConfigError
from gpuworkbench.hybrid.controller import (
    CORRECT,
    FULL,
    LEGAL_MOVES,
    MAX_CONSECUTIVE_PREDICTS,
    PREDICT,
    WARMUP,
    Jump,
    Move,
    PhaseController,
    Situation,
)

SURE = Situation(confidence=1.0, remaining_steps=1000)


def controller(*, averages: bool = False, **keys: Any) -> PhaseController:
    defaults = {
        "warmup_steps": 2,
        "full_steps": 3,
        "correct_steps": 2,
        "max_predict_steps": 5,
        "correction_interval": 2,
        "exploration": 1,
        "confidence_threshold": 0.6,
    }
    return PhaseController(HybridConfig(enabled=True, **{**defaults, **keys}), averages=averages)


def at_decision(phase: str = FULL, *, explored: bool = True, averages: bool = False, **keys: Any) -> PhaseController:
    """A machine at the end of `phase`, whose exploration is over."""
    machine = controller(averages=averages, **keys)
    state = machine.state
    state.phase, state.done = phase, {FULL: 3, CORRECT: 2, WARMUP: 2}[phase]
    state.predictions = machine.config.exploration if explored else 0
    return machine


def moved(machine: PhaseController, situation: Situation) -> Move:
    action = machine.next(situation)
    assert isinstance(action, Move)
    return action


def test_a_whole_cycle_in_order() -> None:
    """Horizon 5 every 2: jump 2, true step, jump 2, true step, jump 1 (HYBRID.md)."""
    machine, seen = controller(), []
    for _ in range(40):
        action = machine.next(SURE)
        if action is None:
            seen.append(f"{machine.phase} step")
            machine.stepped()
        elif isinstance(action, Jump):
            seen.append(f"jump {action.virtual_steps}")
            machine.jumped(accepted=True)
        else:
            seen.append(f"-> {action.to}")
            if len([word for word in seen if word == "-> full"]) == 2:
                break
    assert seen == [
        "warmup step",
        "warmup step",
        "-> full",
        "full step",
        "full step",
        "full step",
        "-> predict",
        "jump 2",
        "predict step",
        "jump 2",
        "predict step",
        "jump 1",
        "-> correct",
        "correct step",
        "correct step",
        "-> predict",
        "jump 2",
        "predict step",
        "jump 1",
        "-> correct",
        "correct step",
        "correct step",
        "-> predict",
        "jump 2",
        "-> correct",
        "correct step",
        "correct step",
        "-> full",
    ]


@pytest.mark.parametrize(
    ("machine", "situation", "to", "reason"),
    [
        (at_decision(WARMUP), SURE, FULL, "2 steps of warm-up are done"),
        (
            at_decision(explored=False),
            SURE._replace(confidence=0.0),
            PREDICT,
            "exploration 1 of 1, the confidence gate",
        ),
        (at_decision(explored=False), SURE._replace(confidence=None), PREDICT, "is bypassed; horizon 5"),
        (at_decision(), SURE, PREDICT, "confidence 1.00; horizon 5"),
        (at_decision(), SURE._replace(confidence=0.6), PREDICT, "confidence 0.60; horizon 1"),
        (at_decision(), SURE._replace(confidence=0.8), PREDICT, "confidence 0.80; horizon 3"),
        (at_decision(), SURE._replace(confidence=0.59), FULL, "confidence 0.59 is below 0.60"),
        (at_decision(), SURE._replace(confidence=None), FULL, "no prediction has been judged yet"),
        (at_decision(), SURE._replace(blocked="the bandit says no"), FULL, "the bandit says no"),
        (at_decision(explored=False), SURE._replace(blocked="not ready"), FULL, "not ready"),
        (at_decision(), SURE._replace(diverged="loss 9 > 3"), FULL, "forced full: loss 9 > 3"),
        (at_decision(), SURE._replace(remaining_steps=4), FULL, "too near the end: a prediction and its correction"),
        (at_decision(), SURE._replace(remaining_steps=5), PREDICT, "horizon 5"),  # 2 + 2 true steps, and one
        (at_decision(), SURE._replace(horizon_factor=0.5), PREDICT, "horizon 3"),
        (at_decision(averages=True), SURE._replace(confidence=0.7), PREDICT, "horizon 3"),  # full_steps
        (at_decision(averages=True), SURE._replace(remaining_steps=2), FULL, "too near the end"),
        (at_decision(averages=True), SURE._replace(remaining_steps=3), PREDICT, "horizon 3"),
        (at_decision(CORRECT), SURE, PREDICT, "confidence 1.00"),
        (at_decision(CORRECT), SURE._replace(confidence=0.1), FULL, "confidence 0.10 is below"),
        (at_decision(CORRECT, explored=False), SURE, FULL, "corrected"),
        (at_decision(CORRECT, averages=True), SURE, FULL, "corrected"),
        (at_decision(CORRECT), SURE._replace(diverged="a spike"), FULL, "forced full: a spike"),
    ],
)
def test_decisions(machine: PhaseController, situation: Situation, to: str, reason: str) -> None:
    move = moved(machine, situation)
    assert move.to == to == machine.phase
    assert reason in move.reason


def test_an_undone_jump_ends_the_prediction() -> None:
    machine = at_decision()
    moved(machine, SURE)
    assert isinstance(machine.next(SURE), Jump)
    machine.jumped(accepted=False)
    assert moved(machine, SURE) == Move(FULL, "the jump was undone", 3)

    machine = at_decision()
    moved(machine, SURE)
    machine.next(SURE)
    machine.jumped(accepted=True)
    assert machine.next(SURE) is None
    machine.stepped()
    machine.next(SURE)
    machine.jumped(accepted=False)
    assert moved(machine, SURE) == Move(CORRECT, "a jump was undone, 1 before it stand", 2)


def test_divergence_within_a_prediction_forces_a_full_phase_and_ends_the_row() -> None:
    machine = at_decision()
    moved(machine, SURE)
    machine.next(SURE)
    machine.jumped(accepted=True)
    machine.stepped()
    assert moved(machine, SURE._replace(diverged="loss 7 above 3")).reason == "forced full: loss 7 above 3"
    assert machine.state.consecutive == 0


def test_the_warm_up_cannot_be_forced() -> None:
    machine = controller()
    assert machine.next(SURE._replace(diverged="early")) is None
    assert machine.phase == WARMUP


def test_the_horizon_grows_with_confidence_and_shrinks_in_a_row() -> None:
    machine = controller(max_predict_steps=9)
    by_confidence = [machine.horizon(confidence) for confidence in (0.6, 0.7, 0.8, 0.9, 1.0)]
    assert by_confidence == [1, 3, 5, 7, 9]
    in_a_row = []
    for machine.state.consecutive in range(4):
        in_a_row.append(machine.horizon(1.0))
    assert in_a_row == [9, 5, 3, 2]
    assert controller(max_predict_steps=1).horizon(1.0) == 1
    assert controller(confidence_threshold=1.0).horizon(1.0) == 5


def test_predictions_in_a_row_are_limited() -> None:
    machine = at_decision(CORRECT)
    machine.state.consecutive = MAX_CONSECUTIVE_PREDICTS
    assert moved(machine, SURE) == Move(FULL, f"{MAX_CONSECUTIVE_PREDICTS} predictions in a row", 3)


@pytest.mark.parametrize(
    ("interval", "averages", "jumps"), [(2, False, [2, 2, 1]), (0, False, [5]), (9, False, [5]), (2, True, [5])]
)
def test_jumps_of_a_horizon(interval: int, averages: bool, jumps: list[int]) -> None:
    assert controller(correction_interval=interval, averages=averages).jumps_of(5) == jumps


def test_the_ramp_of_a_correct_phase() -> None:
    machine = at_decision(correct_steps=3)
    factors = []
    for phase, done in ((FULL, 0), (CORRECT, 0), (CORRECT, 1), (CORRECT, 2), (CORRECT, 3), (PREDICT, 0)):
        machine.state.phase, machine.state.done = phase, done
        factors.append(machine.correct_lr_factor())
    assert factors == [1.0, 0.5, 0.75, 1.0, 1.0, 1.0]


situations = st.builds(
    Situation,
    confidence=st.none() | st.floats(0, 1),
    remaining_steps=st.integers(1, 30),
    blocked=st.sampled_from(["", "", "", "blocked"]),
    diverged=st.sampled_from(["", "", "", "", "", "diverged"]),
    horizon_factor=st.floats(0.1, 1),
)
machines = st.builds(
    controller,
    averages=st.booleans(),
    warmup_steps=st.integers(0, 3),
    full_steps=st.integers(1, 4),
    correct_steps=st.integers(1, 3),
    max_predict_steps=st.integers(1, 9),
    correction_interval=st.integers(0, 4),
    exploration=st.integers(0, 3),
    confidence_threshold=st.floats(0, 1),
)


@settings(max_examples=300, deadline=None)
@given(machine=machines, turns=st.lists(st.tuples(situations, st.booleans()), min_size=5, max_size=80))
def test_no_illegal_move_ever(machine: PhaseController, turns: list[tuple[Situation, bool]]) -> None:
    """Whatever happens: legal moves, reasons, horizons within limits, and never a jump without room for its judgement;
    and a machine restored from its values goes on alike."""
    virtual = 0
    for situation, accepted in turns:
        before, is_due = machine.phase, machine.is_due()
        twin = PhaseController(machine.config, averages=machine.averages)
        twin.load(machine.values())
        action = machine.next(situation)
        assert twin.next(situation) == action
        assert twin.values() == machine.values()
        if isinstance(action, Move):
            assert is_due or situation.diverged
            assert action.to in LEGAL_MOVES[before]
            assert action.reason
            virtual = 0
            if action.to == PREDICT:
                assert not situation.blocked
                assert not situation.diverged
                assert action.planned_steps + machine.config.correct_steps < situation.remaining_steps
        elif isinstance(action, Jump):
            assert machine.phase == PREDICT
            virtual += action.virtual_steps
            limit = machine.config.full_steps if machine.averages else machine.config.max_predict_steps
            assert 1 <= virtual <= limit
            machine.jumped(accepted=accepted)
        else:
            assert machine.phase != PREDICT or machine.state.awaits_step
            machine.stepped()


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "sleep"},
        {"done": -1},
        {"jumps": [0]},
        {"jumps": "2"},
        {"is_undone": 1},
        {"more": 1},
    ],
)
def test_a_foreign_state_is_refused(change: dict[str, Any]) -> None:
    machine = controller()
    with pytest.raises(ValueError, match="phase state"):
        machine.load({**machine.values(), **change})


def test_a_predicted_phase_stands_for_no_more_steps_than_can_be_planned_one_by_one() -> None:
    sets = [Override("hybrid.max_predict_steps", 10_001, "--set")]
    with pytest.raises(ConfigError, match="not a whole number from 1 to 10000"):
        configure(load_preset("quickstart"), sets=sets)
