"""Peak memory against the plan, each preset under the cap of its card; and a card that is really full."""

from __future__ import annotations

import resource
from typing import Any

import torch

from benchmarks.gpu.common import (
    Place,
    Sets,
    Skipped,
    attempted,
    configured,
    ended,
    events_of,
    needs_card,
    new_run,
    plain,
    wait_for_card,
)
from gpuworkbench.errors import WorkbenchError
from gpuworkbench.events.schema import ConfigChanged, Correction, Error, Eval, MicroCorrection, Prediction
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.launch.resume import resume, run_config
from gpuworkbench.plan.analytic import CUDA_CONTEXT_BYTES, estimate
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.memory_errors import first_line, is_out_of_memory
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.units import GIB, format_bytes

STEPS, MAX_STEPS = 3, 10
MICRO_BATCHES = 4  # of one step: how many there are does not change the peak, only the time
# A jump as early as there can be one: after a step of warm-up and a full phase, judged after one more true step.
EARLY_JUMP: Sets = {
    "hybrid.warmup_steps": 1,
    "hybrid.full_steps": 3,
    "hybrid.max_predict_steps": 2,
    "hybrid.correct_steps": 1,
    "hybrid.exploration": 1,
}
MOST_FIXES = 6
STEPS_TO_JUDGEMENT = 6  # it is judged before the last of them


def preset_under_cap(place: Place, preset: str, cap_gib: float) -> dict[str, Any]:
    """The allocator's peak over a few steps against the plan, on a card of `cap_gib` (simulated, unless it is one).

    A hybrid run makes its first jump within them, and judges it: what the plan counts for both is there.
    """
    sets: dict[str, Any] = {"train.grad_accum_steps": MICRO_BATCHES, "train.log_interval_steps": 1}
    if place.is_cuda:
        total_gib = torch.cuda.get_device_properties(0).total_memory / GIB
        if total_gib < 0.9 * cap_gib:
            raise Skipped(f"this card has {total_gib:.1f} GiB")
        if total_gib > cap_gib:  # a card of 16 GB has a little less than 16 GiB: nothing to simulate
            sets["device.memory_limit_gib"] = cap_gib
    is_hybrid = configured(place, preset, sets, MAX_STEPS).hybrid.enabled
    sets |= EARLY_JUMP if is_hybrid else {}
    paths = new_run(place, f"memory-{preset}", preset, sets, steps=MAX_STEPS)
    config = run_config(paths)
    planned = estimate(config, kind=place.device)
    assert planned is not None
    result: dict[str, Any] = {
        "preset": preset,
        "cap_gib": cap_gib,
        "label": config.simulated_card,
        "n_params": config.model.n_params(),
        "planned_parts": dict(planned.parts),
        "planned_bytes": planned.total_bytes,
        "planned_allocator_bytes": planned.total_bytes - (CUDA_CONTEXT_BYTES if place.is_cuda else 0),
        "planned_host_bytes": planned.host_bytes,
    }
    planned_to_fit = planned.total_bytes <= cap_gib * GIB
    where = config.simulated_card or ("this card" if place.is_cuda else "host")
    place.note(result)
    try:
        peaks = attempted(paths, lambda run: _stepped(place, run, STEPS_TO_JUDGEMENT if is_hybrid else STEPS))
    except Exception as error:
        if not is_out_of_memory(getattr(error, "__cause__", None) or error) and "do not fit" not in str(error):
            raise
        said = "as planned" if not planned_to_fit else f"though planned at {format_bytes(planned.total_bytes)}"
        headline = f"{where}: does not fit, {said}"
        return {**result, "fits": False, "agrees": not planned_to_fit, "error": first_line(error), "headline": headline}
    result |= peaks
    if is_hybrid:
        result |= _jumps(paths)
    peak, plan = result["peak_bytes"], result["planned_allocator_bytes" if place.is_cuda else "planned_host_bytes"]
    share = peak / plan - 1
    headline = f"{where}: peak {format_bytes(peak)}, plan {format_bytes(plan)} ({share:+.1%})"
    headline += f", {result['jumps_made']} jump(s), {result['jumps_judged']} judged" if is_hybrid else ""
    return {**result, "fits": True, "agrees": planned_to_fit, "peak_over_plan": share, "headline": headline}


def _stepped(place: Place, run: TrainingRun, steps: int) -> dict[str, int]:
    """The peaks once `steps` steps are done."""
    for _ in range(steps):
        train_one_step(run)
        wait_for_card(place)
    return _peaks(place)


def _jumps(paths: RunPaths) -> dict[str, int]:
    """Jumps made, those of them that stood (their undo copy is there until they are judged), and those judged."""
    made = events_of(paths, Prediction)
    judged = len(events_of(paths, Correction)) + len(events_of(paths, MicroCorrection))
    return {"jumps_made": len(made), "jumps_that_stood": sum(event.accepted for event in made), "jumps_judged": judged}


def _peaks(place: Place) -> dict[str, int]:
    if place.is_cuda:
        free, total = torch.cuda.mem_get_info()
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "device_used_bytes": total - free,
            "outside_allocator_bytes": total - free - torch.cuda.memory_reserved(),
        }
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def out_of_memory(place: Place) -> dict[str, Any]:
    """A card that is really full, in training and in validation: what is said, and whether the fix trains."""
    needs_card(place)
    cap = 4.0
    sets = {
        "device.memory_limit_gib": cap,
        "model.n_layer": 4,
        "train.micro_batch_size": 64,
        "train.grad_accum_steps": 1,
        "train.seq_len": 1024,
        "optimizer.lr": 1e-4,
    }
    paths = new_run(place, "full", "rtx5080_gpt2_small_baseline", sets, steps=3)
    outcome = ended(paths)
    error = next(iter(events_of(paths, Error)), None)
    result: dict[str, Any] = {"exit_code": int(outcome.exit_code), "error": plain(error)}
    place.note(result)
    if error is None or outcome.exit_code != 75:
        raise AssertionError(f"a full card ended with {outcome}")
    attempts, problem = _apply_until_it_trains(paths)
    result |= {"fixes_applied": attempts, "changes": [plain(event) for event in events_of(paths, ConfigChanged)]}
    place.note(result)
    if problem:
        raise AssertionError(f"after {attempts} fix(es) it does not train: {problem}")
    result |= _full_in_validation(place, cap)
    what = f"{error.where}, {error.why}: {error.fix}"
    return {**result, "headline": f"{what}; trains after {attempts} fix(es); validation in parts works"}


def _apply_until_it_trains(paths: RunPaths) -> tuple[int, str]:
    """Fixes applied, and why it does not train after them; "" where it does."""
    problem = ""
    for applied in range(MOST_FIXES):
        try:
            resume(paths, apply_fix=True, queue=True)
        except WorkbenchError as error:  # none is known, or there was no room to build it
            return applied, error.message
        outcome = ended(paths)
        if outcome.exit_code == 0:
            return applied + 1, ""
        problem = outcome.reason
    return MOST_FIXES, problem


def _full_in_validation(place: Place, cap: float) -> dict[str, Any]:
    """The same model validated whole on an uncapped card, and in parts under the cap."""
    base = {"model.n_layer": 4, "train.seq_len": 256, "train.micro_batch_size": 2, "train.grad_accum_steps": 1}
    base |= {"eval.interval_steps": 2, "eval.micro_batch_size": 64, "eval.tokens": 64 * 256, "memory.precision": "fp32"}
    losses = {}
    for name, sets in (("eval-whole", {}), ("eval-in-parts", {"device.memory_limit_gib": cap})):
        paths = new_run(place, name, "rtx5080_gpt2_small_baseline", {**base, **sets}, steps=2)
        torch.cuda.set_per_process_memory_fraction(1.0)
        outcome = ended(paths)
        losses[name] = [event.loss for event in events_of(paths, Eval)]
        if not losses[name]:
            raise AssertionError(f"{name} was not validated: {outcome.reason}")
        codes = [event.code for event in events_of(paths, WarningEvent)]
    whole, parts = losses["eval-whole"][-1], losses["eval-in-parts"][-1]
    if abs(whole - parts) > 1e-4 * whole:
        raise AssertionError(f"validation in parts gives {parts}, whole {whole}")
    return {"eval_whole": whole, "eval_in_parts": parts, "eval_was_reduced": "eval_batch_reduced" in codes}
