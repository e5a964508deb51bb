"""What moves between card, host and disk in a run, or computes beside it, changes no bit: each against a run without.

All of it in exact mode on the small model of benchmarks.gpu.exactness, where equal means equal.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.common import Place, Sets, events_of
from benchmarks.gpu.exactness import (
    MODEL,
    STEPS,
    killed_equals_whole,
    observed_to_its_end,
    run_to_its_end,
    tensors_at,
)
from gpuworkbench.events.schema import Correction, MicroCorrection, Offload, Prediction, Step
from gpuworkbench.memory.activation_offload import ActivationOffload
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.units import format_bytes

ALWAYS = 999  # explorations: every prediction that can be made is made
JUMPS: Sets = {
    **MODEL,
    "hybrid.enabled": True,
    "hybrid.warmup_steps": 4,
    "hybrid.full_steps": 4,
    "hybrid.correct_steps": 2,
    "hybrid.exploration": ALWAYS,
}
MICRO_BATCHES = 4
# Updates of the dynamics model begin after 17 of its ticks of 5 steps; beside a tiny model they are rare.
DYNAMICS_STEPS, SMALL_DYNAMICS_STEPS = 120, 260


def predict_aware(place: Place) -> dict[str, Any]:
    """Optimizer state that leaves while progress is predicted, predictor state on the host: killed and resumed, and
    against the run whose optimizer state stays."""
    sets = {**JUMPS, "hybrid.predictor": "outer_nesterov", "hybrid.state_device": "host"}
    resumed = killed_equals_whole(place, "aware", {**sets, "memory.optimizer_offload": "predict_aware"})
    aware = RunPaths(place.root / "runs" / "aware-a")
    moves = {op: _moved_bytes(aware, "optimizer", op) for op in ("offload", "restore")}
    result = {"killed_at_step": resumed["killed_at_step"], "moved_bytes": moves, **_jumps(aware)}
    place.note(result)
    if not (result["jumps_that_stood"] and all(moves.values())):
        raise AssertionError(f"nothing was moved: {result}")
    result |= _same(run_to_its_end(place, "stayed", sets), aware)
    moved = format_bytes(moves["offload"])
    headline = (
        f"{moved} out and back around {result['jumps_made']} jumps, predictor on the host: bit-identical, resumed"
    )
    return {**result, "headline": f"{headline} too"}


def activation_offload(place: Place) -> dict[str, Any]:
    """Activations that wait in host memory, four micro-batches a step, against activations that stay."""
    sets = {**MODEL, "train.grad_accum_steps": MICRO_BATCHES}
    stayed = run_to_its_end(place, "kept", sets)
    moved, pool = observed_to_its_end(place, "moved", {**sets, "memory.activation_offload": True}, _pool)
    moves = {op: _moved_bytes(moved, "activations", op) for op in ("offload", "restore")}
    result = {**pool, "moved_bytes": moves, "micro_batches": MICRO_BATCHES}
    place.note(result)
    if not all(moves.values()):
        raise AssertionError(f"nothing was moved: {result}")
    result |= _same(stayed, moved)
    pinned = "pinned" if pool["is_pinned"] else "not pinned"
    headline = f"{format_bytes(moves['offload'] // STEPS)} a step through {format_bytes(pool['pool_bytes'])}, {pinned}"
    return {**result, "headline": f"{headline}: bit-identical"}


def undo_on_disk(place: Place) -> dict[str, Any]:
    """Jumps undone from a file against jumps undone from memory: in a random direction, with a loss that only wavers
    and a limit at its mean, so that probes undo some of them, and true steps others."""
    sets = {**JUMPS, "hybrid.predictor": "random", "hybrid.divergence_threshold": 0.01, "optimizer.lr": 1e-5}
    runs = [run_to_its_end(place, f"undo-{kind}", {**sets, "hybrid.undo_storage": kind}) for kind in ("memory", "disk")]
    result = _jumps(runs[1])
    place.note(result)
    n_undone = result["jumps_made"] - result["jumps_that_stood"] + result["rolled_back"]
    if not n_undone:
        raise AssertionError(f"nothing was undone: {result}")
    result |= _same(runs[0], runs[1])
    said = f"{n_undone} of {result['jumps_made']} jumps undone, {result['rolled_back']} of them after true steps"
    return {**result, "headline": f"{said}: from disk as from memory, bit-identical"}


def dynamics_on_device(place: Place) -> dict[str, Any]:
    """The dynamics model where the run computes, in exact mode: it learns, and does the same twice."""
    steps = SMALL_DYNAMICS_STEPS if place.is_small else DYNAMICS_STEPS
    sets = {**JUMPS, "hybrid.predictor": "outer_nesterov", "hybrid.dynamics": True}
    sets |= {"hybrid.dynamics_device": "device", "checkpoint.interval_steps": 0}
    runs = [observed_to_its_end(place, f"dynamics-{kind}", sets, _updates, steps) for kind in "ab"]
    result = {"updates": runs[0][1], "steps": steps, **_jumps(runs[0][0])}
    place.note(result)
    if not result["updates"]:
        raise AssertionError(f"the dynamics model learnt nothing in {steps} steps")
    result |= _same(runs[0][0], runs[1][0], steps)
    return {**result, "headline": f"{result['updates']} updates in {steps} steps, twice the same: bit-identical"}


def _same(one: RunPaths, other: RunPaths, steps: int = STEPS) -> dict[str, Any]:
    """Losses and the final weights and optimizer of two runs. Raises AssertionError where they differ."""
    losses = [[step.loss for step in events_of(paths, Step)] for paths in (one, other)]
    tensors = [tensors_at(paths, steps) for paths in (one, other)]
    names = sorted(name for name in tensors[0] if name.startswith(("model", "optimizer")))
    differing = [name for name in names if tensors[0][name] != tensors[1].get(name)]
    found = {"losses_equal": losses[0] == losses[1], "tensors_equal": bool(names) and not differing}
    if not all(found.values()) or len(losses[0]) < steps:
        apart = max((abs(a - b) for a, b in zip(*losses, strict=False)), default=None)
        raise AssertionError(
            f"{other.run_id} is another run than {one.run_id}: {found}, {differing}, losses by {apart}"
        )
    return {**found, "files": names}


def _moved_bytes(paths: RunPaths, target: str, op: str) -> int:
    """Bytes of all transfers of one direction."""
    moved = events_of(paths, Offload)
    return sum(event.num_bytes for event in moved if (event.target, event.op) == (target, op))


def _jumps(paths: RunPaths) -> dict[str, int]:
    """Jumps made, those that the probe kept, and those that true steps undid."""
    made = events_of(paths, Prediction)
    judged = [*events_of(paths, Correction), *events_of(paths, MicroCorrection)]
    return {
        "jumps_made": len(made),
        "jumps_that_stood": sum(event.accepted for event in made),
        "rolled_back": sum(event.rolled_back for event in judged),
    }


def _pool(run: TrainingRun) -> dict[str, Any]:
    """Host memory that activations went through, and whether the driver pinned all of it."""
    (strategy,) = (each for each in run.strategies if isinstance(each, ActivationOffload))
    return {"pool_bytes": strategy.pool.num_bytes, "is_pinned": strategy.pool.is_pinned}


def _updates(run: TrainingRun) -> int:
    """Updates of the dynamics model so far."""
    advice: Any = run.hybrid.parts()["hybrid_dynamics"]
    return int(advice.model.updates)
