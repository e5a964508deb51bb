"""Memory is full: what happened where and why, what was biggest, the one change that fits; and a sound state."""

from __future__ import annotations

import torch

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.events.schema import Error, LiveTensor
from gpuworkbench.plan.memory_fix import Fix, find_fix
from gpuworkbench.training.activity import Activity
from gpuworkbench.training.live_tensors import largest
from gpuworkbench.training.memory_errors import (
    Shortage,
    Why,
    first_line,
    let_go,
    shortage_of,
    uses_expandable_segments,
    why,
)
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.units import format_bytes

MOST_IN_HINT = 3


def note_out_of_memory(run: TrainingRun, error: BaseException) -> bool:
    """Record it and free what the failed call held; whether weights and optimizer are those of the last finished step.

    Where they are, so are the generators: a resume draws what the failed step drew.
    """
    activity, device = run.activity, run.device.torch_device
    is_sound = not (activity.may_tear or (activity.draws and changes_before_update(run.config)))
    shortage = shortage_of(error, device, run.device.limit_bytes)
    biggest = largest(run.model, run.optimizer, error, reads_graph=not keeps_activations_elsewhere(run.config))
    fix = find_fix(
        run.config,
        kind=device.type,
        limit_bytes=shortage.limit_bytes,
        needed_bytes=shortage.needed_bytes,
        validating=activity is Activity.VALIDATION,
    )
    let_go(error)
    run.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    if activity.draws and run.draws is not None:
        run.parts["rng"].load(run.draws)
    reason = why(shortage)
    run.events.emit(
        Error,
        step=run.progress.step,
        kind="cuda_oom",
        message=first_line(error),
        hint=hint(fix, reason, shortage, biggest),
        where=activity.value,
        why=reason.value,
        requested_bytes=shortage.requested_bytes,
        biggest=biggest,
        fix=dict(fix.changes) if fix is not None else {},
    )
    return is_sound


def changes_before_update(config: RunConfig) -> bool:
    """Whether weights or optimizer change within a step before its update: by a prediction, or during backward."""
    return config.hybrid.enabled or config.memory.optimizer_in_backward


def run_device(config: RunConfig) -> str:
    """Where the run's memory is, in words."""
    return "card" if config.device.kind == "cuda" else "host's memory"


def no_room_hint(error: BaseException, config: RunConfig) -> str:
    """What to do where the run cannot even be built."""
    shortage = shortage_of(error, torch.device(config.device.kind))
    if why(shortage) is Why.OTHER_PROCESS:
        return f"other processes hold {format_bytes(shortage.others_bytes)}: end them and try again"
    return "choose a smaller preset or model"


def keeps_activations_elsewhere(config: RunConfig) -> bool:
    """Whether looking at a saved activation would compute or fetch it."""
    return config.memory.activation_checkpointing != "none" or config.memory.activation_offload


def hint(fix: Fix | None, reason: Why, shortage: Shortage, biggest: tuple[LiveTensor, ...]) -> str:
    """Cause, the biggest tensors, and what to do, in a line."""
    said = []
    if reason is Why.FRAGMENTATION:
        said.append(f"{format_bytes(shortage.unallocated_bytes)} are free in pieces that are too small")
        if not uses_expandable_segments():
            said.append("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True joins them")
    elif reason is Why.OTHER_PROCESS:
        said.append(f"other processes hold {format_bytes(shortage.others_bytes)}: end them and resume")
    if biggest:
        shown = ", ".join(f"{tensor.name} {format_bytes(tensor.num_bytes)}" for tensor in biggest[:MOST_IN_HINT])
        said.append(f"biggest: {shown}")
    if fix is None:
        said.append("no single change is known to help; choose a smaller model")
    else:
        outlook = "" if fix.fits is not False else " (the most that one change can do; it may not be enough)"
        said.append(f"--resume with --apply-fix sets {fix.flags()}{outlook}")
    return "; ".join(said)
