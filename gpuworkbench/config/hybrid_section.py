"""The [hybrid] section: phases of true and predicted progress, and what decides between them."""

from __future__ import annotations

from typing import Annotated, Literal

from gpuworkbench.config.fields import MAX_COUNT, MAX_STEPS, Section, doc

# A phase plans its jumps one by one and strategies hear of every virtual step: a billion of them would take minutes, in
# which nothing else is heard, and gigabytes.
MAX_VIRTUAL_STEPS = 10_000


class HybridConfig(Section, frozen=True, kw_only=True):
    """Phases of the hybrid trainer: warmup, full, predict, correct. Steps here are optimizer steps."""

    enabled: Annotated[bool, doc("alternate training with predicted progress; false: every step is a full step")] = (
        False
    )
    predictor: Annotated[
        str, doc("null, random, outer_nesterov, ema_trend, line_jump, subspace, linear, mlp or learned")
    ] = "outer_nesterov"
    warmup_steps: Annotated[int, doc("plain steps before the first full phase", ge=0, le=MAX_STEPS)] = 10
    full_steps: Annotated[int, doc("true steps of a full phase, which predictors observe", ge=1, le=MAX_STEPS)] = 20
    max_predict_steps: Annotated[
        int, doc("virtual steps that one predicted phase may stand for at most", ge=1, le=MAX_VIRTUAL_STEPS)
    ] = 5
    correction_interval: Annotated[
        int, doc("virtual steps between two true ones inside a predicted phase; 0: none", ge=0, le=MAX_STEPS)
    ] = 2
    correct_steps: Annotated[int, doc("true steps of a correct phase, with a short ramp", ge=1, le=1000)] = 3
    confidence_threshold: Annotated[
        float, doc("a jump is made when its probability of acceptance is at least this", ge=0.0, le=1.0)
    ] = 0.6
    divergence_threshold: Annotated[
        float, doc("standard deviations above the running loss that count as divergence", gt=0.0, le=1e6)
    ] = 2.5
    exploration: Annotated[
        int, doc("first predictions of a run that pass the confidence gate, and say so", ge=0, le=MAX_STEPS)
    ] = 2
    outer_lr: Annotated[float, doc("outer_nesterov: step size eta of the slow weights", gt=0.0, le=10.0)] = 0.7
    outer_momentum: Annotated[float, doc("outer_nesterov: momentum mu of the slow weights", ge=0.0, lt=1.0)] = 0.5
    probe_sequences: Annotated[
        int, doc("sequences of the probe batch, from a reserved slice of the training data", ge=1, le=MAX_COUNT)
    ] = 8
    state_device: Annotated[
        Literal["device", "host"],
        doc("where slow weights and momentum live, and undo copies kept in memory; host: streamed at the jump"),
    ] = "device"
    undo_storage: Annotated[
        Literal["memory", "disk"],
        doc("where the copy that undoes a jump lies until it is judged: memory (state_device's), or a file of the run"),
    ] = "memory"
    moment_damping: Annotated[
        float, doc("optimizer moments are multiplied by this after an accepted jump; 1 keeps them", ge=0.0, le=1.0)
    ] = 1.0
    dynamics: Annotated[bool, doc("train the dynamics model beside the run; it gives the confidence")] = False
    dynamics_device: Annotated[Literal["device", "host"], doc("where the dynamics model computes")] = "host"
    corrector: Annotated[
        bool, doc("correct predicted losses, and jumps along the path, by what earlier ones missed in shadow")
    ] = False
    bandit: Annotated[
        bool, doc("let a bandit choose predictor and horizon, and switch prediction off where it does not pay")
    ] = False
    bandit_predictors: Annotated[
        str,
        doc("further predictors that the bandit may choose, with commas between; each keeps its state", max_length=200),
    ] = ""
    auto_tuning: Annotated[
        bool, doc("plateau restarts, adaptive clipping and gradient bands, each told as an event")
    ] = False
    ema_eval_decay: Annotated[
        float,
        doc("decay of an average of the weights, validated too: where a decay would land; 0: off", ge=0.0, lt=1.0),
    ] = 0.0
