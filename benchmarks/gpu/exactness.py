"""kill -9 and resume on the card, bit for bit; and what memory strategies and the hybrid trainer do to a loss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from benchmarks.gpu.common import Place, Sets, Skipped, attempted, events_of, new_run
from gpuworkbench.errors import ConfigError, WorkbenchError
from gpuworkbench.events.schema import Offload, Prediction, RunStarted, Step
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.setup import TrainingRun

T = TypeVar("T")
STEPS, KILLED_AT = 60, 13
MODEL: Sets = {
    "model.vocab_size": 4096,
    "data.bin_vocab_size": 4096,
    "model.n_layer": 4,
    "model.n_head": 4,
    "model.n_embd": 256,
    "model.dropout": 0.1,
    "train.seq_len": 128,
    "train.micro_batch_size": 8,
    "train.grad_accum_steps": 2,
    "train.mode": "exact",
    "train.log_interval_steps": 1,
    "checkpoint.interval_steps": 5,
}
PRESET = "rtx5080_gpt2_small_baseline"
STREAMED_TOLERANCE = 1e-3  # its arithmetic is torch's AdamW step by step, the other is torch's fused kernel


def kill_and_resume(place: Place) -> dict[str, Any]:
    """A trainer killed in the midst of its run and resumed ends with the bytes of one that was left alone."""
    return killed_equals_whole(place, "plain", {})


def killed_equals_whole(place: Place, name: str, sets: Sets) -> dict[str, Any]:
    """Three trainer processes: one whole run; one killed with SIGKILL after KILLED_AT steps, and its resume."""
    whole, killed = (new_run(place, f"{name}-{kind}", PRESET, {**MODEL, **sets}, steps=STEPS) for kind in ("a", "b"))
    first = _trainer(whole)
    if first.wait() != 0:
        raise AssertionError(f"the trainer ended with {first.returncode}: {_log_end(whole)}")
    victim = _trainer(killed)
    while not any(step.step >= KILLED_AT for step in events_of(killed, Step)):
        if victim.poll() is not None:
            raise AssertionError(f"the trainer ended with {victim.returncode}: {_log_end(killed)}")
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    reached = max(step.step for step in events_of(killed, Step))
    if reached == STEPS:
        raise AssertionError("it was done before it could be killed")
    if _trainer(killed).wait() != 0:
        raise AssertionError(f"the resume failed: {_log_end(killed)}")
    losses = [{step.step: step.loss for step in events_of(paths, Step)} for paths in (whole, killed)]
    tensors = [tensors_at(paths, STEPS) for paths in (whole, killed)]
    result = {
        "steps": STEPS,
        "killed_at_step": reached,
        "losses_equal": losses[0] == losses[1],
        "tensors_equal": tensors[0] == tensors[1] and bool(tensors[0]),
        "files": sorted(tensors[0]),
    }
    if not (result["losses_equal"] and result["tensors_equal"]):
        raise AssertionError(f"the resumed run is another one: {result}")
    return {**result, "headline": f"killed at step {reached} of {STEPS}: losses and final state bit-identical"}


def _trainer(paths: RunPaths) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gpuworkbench.training", str(paths.root), "--share"]
    with paths.trainer_log.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _log_end(paths: RunPaths) -> str:
    return paths.trainer_log.read_text(errors="replace")[-600:]


def tensors_at(paths: RunPaths, step: int) -> dict[str, bytes]:
    """A checkpoint's tensor files by name."""
    return {path.name: path.read_bytes() for path in paths.checkpoint(step).glob("*.safetensors")}


def streamed_state(place: Place) -> dict[str, Any]:
    """Optimizer state on the host, streamed: the same losses as with it on the card, and what it costs."""
    results = {}
    for name, offload in (("on-card", "none"), ("streamed", "streamed")):
        sets = {**MODEL, "model.n_layer": 8, "memory.optimizer_offload": offload}
        paths = run_to_its_end(place, f"offload-{name}", sets)
        steps, moved = events_of(paths, Step), events_of(paths, Offload)
        results[name] = {
            "losses": [step.loss for step in steps],
            "step_s": sorted(step.step_time_s or 0.0 for step in steps)[len(steps) // 2],
            "moved_bytes": sum(event.num_bytes for event in moved),
            "transfer_s": sum(event.duration_s for event in moved),
            "hidden_s": sum(event.overlapped_s for event in moved),
        }
        place.note(results)
    moved = results["streamed"]
    if not moved["moved_bytes"]:
        raise Skipped("this version moves nothing for memory.optimizer_offload=streamed")
    pairs = zip(results["on-card"]["losses"], moved["losses"], strict=True)
    difference = max(abs(streamed / on_card - 1) for on_card, streamed in pairs)
    if difference > STREAMED_TOLERANCE:
        raise AssertionError(f"streamed state trains to other losses, by {difference:.1e}")
    ratio = moved["step_s"] / results["on-card"]["step_s"]
    overlap = moved["hidden_s"] / moved["transfer_s"] if moved["transfer_s"] else None
    shown = "n/a" if overlap is None else f"{overlap:.0%}"
    headline = f"losses within {difference:.0e}, step {ratio:.2f}x, {shown} of transfers hidden"
    return {**results, "loss_difference": difference, "step_ratio": ratio, "overlap": overlap, "headline": headline}


def packed_optimizer(place: Place) -> dict[str, Any]:
    """bf16 weights with packed AdamW against fp32 AdamW: the loss of the last tenth of a few hundred steps."""
    steps = 20 if place.is_small else 300
    found: dict[str, Any] = {}
    for name, sets in (("fp32", {}), ("packed", {"memory.packed_optimizer": True, "memory.weights": "bf16"})):
        paths = new_run_or_skip(
            place, f"adamw-{name}", {**MODEL, "model.dropout": 0.0, "train.grad_accum_steps": 1, **sets}, steps
        )
        found[name] = attempted_or_skip(paths, lambda run: _bytes_after(run, steps))
        losses = [step.loss for step in events_of(paths, Step)]
        found[name] |= {"losses": losses, "final_loss": sum(losses[-steps // 10 :]) / len(losses[-steps // 10 :])}
        place.note(found)
    per_param = found["packed"]["state_bytes_per_param"] + found["packed"]["weight_bytes_per_param"]
    if per_param > 7.5:
        raise Skipped(f"this version does not pack: {per_param:.1f} bytes a parameter with memory.packed_optimizer")
    gap = found["packed"]["final_loss"] / found["fp32"]["final_loss"] - 1
    return {**found, "gap": gap, "headline": f"{per_param:.2f} B/param, loss {gap:+.2%} after {steps} steps"}


def _bytes_after(run: TrainingRun, steps: int) -> dict[str, float]:
    """Bytes a parameter, of state and weights, when `steps` steps are done."""
    for _ in range(steps):
        train_one_step(run)
    run.telemetry.flush()
    n_params = sum(parameter.numel() for parameter in run.trainable)
    state = run.parts["optimizer"].state().tensors.values()
    return {
        "state_bytes_per_param": sum(tensor.nbytes for tensor in state) / n_params,
        "weight_bytes_per_param": sum(parameter.nbytes for parameter in run.trainable) / n_params,
    }


def hybrid(place: Place) -> dict[str, Any]:
    """Predicted steps that are taken and undone; killed in the midst, and resumed bit for bit."""
    sets = {
        "hybrid.enabled": True,
        "hybrid.predictor": "outer_nesterov",
        "hybrid.warmup_steps": 4,
        "hybrid.full_steps": 4,
        "hybrid.exploration": 2,
    }
    attempted_or_skip(new_run_or_skip(place, "hybrid-probe", {**MODEL, **sets}, STEPS), lambda run: None)
    result = killed_equals_whole(place, "hybrid", sets)
    predictions = events_of(RunPaths(place.root / "runs" / "hybrid-a"), Prediction)
    accepted = sum(event.accepted for event in predictions)
    counts = {"accepted": accepted, "rejected": len(predictions) - accepted}
    headline = f"{accepted} accepted, {counts['rejected']} undone; {result['headline']}"
    return {**result, **counts, "headline": headline}


def new_run_or_skip(place: Place, name: str, sets: Sets, steps: int) -> RunPaths:
    """A new run of the small model, where this version takes its configuration."""
    try:
        return new_run(place, name, PRESET, sets, steps=steps)
    except ConfigError as error:
        raise Skipped(f"refused by this version: {error.message}") from None


def attempted_or_skip(paths: RunPaths, work: Callable[[TrainingRun], T]) -> T:
    """As `attempted`, where this version takes the run's configuration."""
    try:
        return attempted(paths, work)
    except WorkbenchError as error:
        raise Skipped(f"refused by this version: {error.message}") from None


def run_to_its_end(place: Place, name: str, sets: Sets, steps: int = STEPS) -> RunPaths:
    """A run trained in this process. Raises AssertionError where it does not come to its end."""
    return observed_to_its_end(place, name, sets, lambda run: None, steps)[0]


def observed_to_its_end(
    place: Place, name: str, sets: Sets, look: Callable[[TrainingRun], T], steps: int = STEPS
) -> tuple[RunPaths, T]:
    """The run and what `look` sees of it when it has ended."""
    paths = new_run_or_skip(place, name, sets, steps)
    outcome, seen = attempted_or_skip(paths, lambda run: (finish(run), look(run)))
    if outcome.exit_code != 0:
        raise AssertionError(f"{name}: {outcome.reason}")
    if not events_of(paths, RunStarted):
        raise AssertionError(f"{name}: no run_started event")
    return paths, seen
