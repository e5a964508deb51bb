"""The analytic tier of the planner: bytes by part from formulas alone, in well under a millisecond.

A step has moments at which its memory may be at its highest: the loss (all activations, the logits), the beginning of
backward, its end (all gradients, the table's from both of its uses), the optimizer's update, a validation. Each is
summed up, in each phase that makes true steps and in that phase's precision; the estimate is the highest, and its
parts are what is there then. Predicted, not measured: how far off it is stands in
benchmarks/results/plan_accuracy.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from msgspec import Struct

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import StorageBytes, storage_bytes
from gpuworkbench.plan.activation_bytes import Activations, activations
from gpuworkbench.plan.hybrid_bytes import JUMP_COPIES, HybridBytes, hybrid_bytes
from gpuworkbench.plan.loss_bytes import FP32_BYTES, logits_block_bytes, loss_bytes
from gpuworkbench.plan.phase_widths import FULL, JUDGES_A_JUMP, PREDICT, phase_of_each_width, product_bytes
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import GIB, MIB

GEMM_WORKSPACE_BYTES = 64 * MIB
CUDA_CONTEXT_BYTES = GIB // 2  # 0.35 to 0.8 GiB, by driver and card
CPU_PROCESS_BYTES = 345 * MIB  # interpreter, torch and its kernels' code
# The heap's holes: so many blocks of fp32 logits, or that share of all that comes and goes in a step.
HOLES_BLOCKS = 4
HOLES_SHARE = 0.29
CUDA_PROCESS_BYTES = 1_200 * MIB  # the same with the CUDA libraries
TIGHT_SHARE = 0.92  # beyond this share of the limit, fragmentation decides

PARTS = (
    "weights",
    "8-bit residual",
    "gradients",
    "optimizer state",
    "staging",
    "autocast copies",
    "activations",
    "logits",
    "predictor, undo",
    "workspace",
    "CUDA context",
)
MOMENTS = ("loss", "backward", "end of backward", "update", "validation", "jump")


class Verdict(StrEnum):
    """Whether an estimate stays within a limit."""

    FITS = "fits"
    TIGHT = "tight"
    DOES_NOT_FIT = "does_not_fit"

    @property
    def label(self) -> str:
        """For people."""
        return self.value.replace("_", " ")


class Estimate(Struct, frozen=True, kw_only=True):
    """Predicted bytes. `parts` (of PARTS, all present) are where the run computes when its memory is at its highest,
    at `moment`, and sum up to `total_bytes`; `moments` says how high each moment is. `pinned_bytes` is part of
    `host_bytes`. `predict_bytes`: the most while a jump is made and probed, None without prediction.
    `disk_bytes`: the checkpoints, one of them of a step whose jump is not judged yet, and `undo_disk_bytes`.
    """

    parts: Mapping[str, int]
    total_bytes: int
    host_bytes: int
    pinned_bytes: int
    disk_bytes: int
    n_params: int
    moment: str
    moments: Mapping[str, int]
    predict_bytes: int | None = None
    undo_disk_bytes: int = 0

    @property
    def allocator_bytes(self) -> int:
        """The part that the card's allocator sees: all but the context."""
        return self.total_bytes - self.parts["CUDA context"]


def estimate(config: RunConfig, *, kind: str) -> Estimate | None:
    """What `config` takes on a `kind` (cuda or cpu) device; None while its vocabulary is unknown."""
    known = with_known_vocabulary(config)
    if known is None:
        return None
    storage = storage_bytes(known)
    hybrid = hybrid_bytes(known, storage)
    widest = max(phase_of_each_width(known, kind))
    points = _points(known, storage, hybrid, kind)
    highest = max(points, key=lambda point: point.total_bytes)
    moment, parts = highest.moment, highest.parts
    moments = dict.fromkeys(MOMENTS, 0)
    for point in points:
        moments[point.moment] = max(moments[point.moment], point.total_bytes)
    total = sum(parts.values())
    offloaded = offloaded_bytes(known, hybrid, storage, widest)
    is_cuda = kind == "cuda"
    process = CUDA_PROCESS_BYTES if is_cuda else cpu_process_bytes(known, storage, hybrid, moments, widest)
    return Estimate(
        parts=MappingProxyType(parts),
        total_bytes=total,
        host_bytes=process + offloaded + copied_bytes(known, storage, hybrid, kind),
        pinned_bytes=offloaded if is_cuda else 0,
        disk_bytes=saved_bytes(storage, hybrid) * kept_checkpoints(known) + hybrid.judged + hybrid.disk,
        n_params=known.model.n_params(),
        moment=moment,
        moments=MappingProxyType(moments),
        predict_bytes=moments["jump"] if known.hybrid.enabled else None,
        undo_disk_bytes=hybrid.disk,
    )


def heaviest_phase(config: RunConfig, kind: str) -> str:
    """The phase whose true steps take most, where a step of one alone is made. `config` has a known vocabulary."""
    storage = storage_bytes(config)
    points = _points(config, storage, hybrid_bytes(config, storage), kind)
    steps = [point for point in points if point.moment not in ("validation", "jump")]
    return max(steps, key=lambda point: point.total_bytes).phase


class _Point(NamedTuple):
    """A moment in a phase, and what is there then."""

    phase: str
    moment: str
    parts: dict[str, int]
    total_bytes: int


def _points(config: RunConfig, storage: StorageBytes, hybrid: HybridBytes, kind: str) -> list[_Point]:
    """Every moment of a true step, in each width that phases have; a validation and a jump in theirs.

    The copy that undoes a jump is there until true steps have judged it; validations fall into such steps too.
    """
    is_cuda = kind == "cuda"
    lasting = {
        "weights": storage.weights,
        "8-bit residual": storage.residual,
        "optimizer state": storage.optimizer_state,
        "staging": 0 if is_scratch(config) else storage.staging,
        "predictor, undo": hybrid.device,
        "CUDA context": CUDA_CONTEXT_BYTES if is_cuda else 0,
    }
    undo = {"predictor, undo": hybrid.undo}
    workspace = {"workspace": GEMM_WORKSPACE_BYTES if is_cuda else 0}
    full, predict = (product_bytes(config, kind, phase) for phase in (FULL, PREDICT))
    steps = phase_of_each_width(config, kind)
    copies = {width: autocast_copies(config, width) for width in {*steps, full, predict}}
    points = []
    for width, phase in steps.items():
        beside = lasting, undo if phase in JUDGES_A_JUMP else {}
        loss = loss_moment(config, storage, width, copies[width], kind)
        backward = backward_moment(config, storage, width, copies[width], kind)
        update = {"gradients": storage.gradients, "staging": storage.staging if is_scratch(config) else 0}
        points += [
            _point(phase, "loss", *beside, workspace, loss),
            _point(phase, "backward", *beside, workspace, backward),
            _point(phase, "end of backward", *beside, workspace, end_of_backward_moment(config, storage)),
            _point(phase, "update", *beside, update),
        ]
    validation = validation_moment(config, full, copies[full])
    jump = jump_moment(config, storage, hybrid, predict, copies[predict])
    return [
        *points,
        _point(FULL, "validation", lasting, undo, workspace, validation),
        _point(PREDICT, "jump", lasting, undo, workspace, jump),
    ]


def _point(phase: str, moment: str, *there: Mapping[str, int]) -> _Point:
    """The sum, part by part."""
    total = dict.fromkeys(PARTS, 0)
    for parts in there:
        for name, num_bytes in parts.items():
            total[name] += num_bytes
    return _Point(phase, moment, total, sum(total.values()))


def loss_moment(config: RunConfig, storage: StorageBytes, width: int, copies: int, kind: str) -> dict[str, int]:
    """Forward is done and the loss is computed; with accumulation the gradients so far are there."""
    found = activations(config, rows(config), width, kind)
    return {
        "gradients": accumulated_gradients(config, storage),
        "autocast copies": copies,
        "activations": found.saved,
        "logits": loss_bytes(config, rows(config), width, gradient_width(config)),
    }


def backward_moment(config: RunConfig, storage: StorageBytes, width: int, copies: int, kind: str) -> dict[str, int]:
    """The last block's backward: nearly all activations, the table's first gradient, what flows through the block."""
    found = activations(config, rows(config), width, kind)
    return {
        "gradients": accumulated_gradients(config, storage) + table_gradient(config),
        "autocast copies": 0 if _is_recomputed(config) else copies,
        "activations": found.saved + found.block,
        "workspace": flowing_bytes(config, width),
    }


def end_of_backward_moment(config: RunConfig, storage: StorageBytes) -> dict[str, int]:
    """The token table's gradients of head and embedding meet, before they are added to what is there.

    Autograd adds the second to the first in place after a chunked loss; after a plain one the sum is a third tensor
    (as measured: tests/training/test_plan_measured.py).
    """
    pending = (2 if config.memory.chunked_cross_entropy else 3) * table_gradient(config)
    if config.memory.optimizer_in_backward and config.device.compile == "off":
        return {"gradients": pending}  # every other one is used up by then
    own = 0 if config.train.grad_accum_steps > 1 else table_gradient(config)
    return {"gradients": max(storage.gradients - own, 0) + pending}


def validation_moment(config: RunConfig, width: int, copies: int) -> dict[str, int]:
    """Loss without gradients; the activations of one block at a time."""
    if not config.eval.interval_steps:
        return {}
    n_rows = config.eval_micro_batch_size * config.train_seq_len
    passing = passing_bytes(config, n_rows, width)
    logits = loss_bytes(config, n_rows, width, FP32_BYTES, is_training=False)
    return {
        "autocast copies": copies,
        "activations": min(passing, n_rows * config.model.saved_bytes_per_token(width)),
        "logits": logits,
    }


def jump_moment(
    config: RunConfig, storage: StorageBytes, hybrid: HybridBytes, width: int, copies: int
) -> dict[str, int]:
    """A jump and its probe: no gradients, no activations kept; the optimizer's state away where it is offloaded."""
    if not config.hybrid.enabled:
        return {}
    n_rows = min(config.hybrid.probe_sequences, config.train.micro_batch_size) * config.train_seq_len
    is_away = config.memory.optimizer_offload == "predict_aware"
    logits = loss_bytes(config, n_rows, width, FP32_BYTES, is_training=False)
    passing = passing_bytes(config, n_rows, width)
    jump = {"predictor, undo": hybrid.passing}
    if copies + logits + passing > hybrid.passing:  # the probe's
        jump = {"autocast copies": copies, "activations": passing, "logits": logits}
    return jump | (
        {"optimizer state": -storage.optimizer_state, "8-bit residual": -storage.residual} if is_away else {}
    )


def passing_bytes(config: RunConfig, n_rows: int, width: int) -> int:
    """Activations of one block without gradients: the stream, a norm's output, and four times as wide, twice."""
    return n_rows * config.model.n_embd * (4 + 9 * width)


def autocast_copies(config: RunConfig, width: int) -> int:
    """Copies of the fp32 matrices in the type of the products, kept for backward. A chunked loss makes its own."""
    if width >= FP32_BYTES or config.memory.weights != "fp32":
        return 0
    with_table = not config.memory.chunked_cross_entropy
    elements = sum(
        copies * math.prod(shape) for role, shape, copies in config.model.parameter_shapes() if role != "table"
    )
    return width * (elements + (config.model.padded_vocab_size * config.model.n_embd if with_table else 0))


def accumulated_gradients(config: RunConfig, storage: StorageBytes) -> int:
    """Gradients that are there while a micro-batch's forward pass runs."""
    return storage.gradients if config.train.grad_accum_steps > 1 else 0


def is_scratch(config: RunConfig) -> bool:
    """Whether staging is the scratch of an update, gone after it; the buckets of a streamed state stay."""
    return config.memory.optimizer_offload != "streamed"


def gradient_width(config: RunConfig) -> int:
    """Bytes of an element of the token table's gradient as the loss makes it: the type of the weights."""
    return 2 if config.memory.weights == "bf16" else FP32_BYTES


def table_gradient(config: RunConfig) -> int:
    """One gradient of the token table."""
    return config.model.padded_vocab_size * config.model.n_embd * gradient_width(config)


def flowing_bytes(config: RunConfig, width: int) -> int:
    """The gradients that flow through one block."""
    return rows(config) * config.model.n_embd * 10 * width


def rows(config: RunConfig) -> int:
    """Tokens of one micro-batch."""
    return config.train.micro_batch_size * config.train_seq_len


def offloaded_bytes(config: RunConfig, hybrid: HybridBytes, storage: StorageBytes, width: int) -> int:
    """What lies in host memory in place of the device's."""
    return storage.host_state + hybrid.host + kept_on_host(config, width).host


def kept_on_host(config: RunConfig, width: int) -> Activations:
    """The activations of a micro-batch."""
    return activations(config, rows(config), width)


def saved_bytes(storage: StorageBytes, hybrid: HybridBytes) -> int:
    """A checkpoint: weights, residual, optimizer state, and the predictor's."""
    state = storage.optimizer_state or storage.host_state
    return storage.weights + storage.residual + state + hybrid.saved


def copied_bytes(config: RunConfig, storage: StorageBytes, hybrid: HybridBytes, kind: str) -> int:
    """The host's copy of what a checkpoint holds, kept from the first one on; without it what lies on a card is
    written a part at a time. Nobody writes to an undo copy, so it is copied only where it is a card's."""
    is_cuda = kind == "cuda"
    if config.checkpoint.in_background:
        return saved_bytes(storage, hybrid) + (hybrid.undo if is_cuda else 0)
    return max(storage.weights, storage.optimizer_state, storage.residual, hybrid.device) if is_cuda else 0


def cpu_process_bytes(
    config: RunConfig, storage: StorageBytes, hybrid: HybridBytes, moments: Mapping[str, int], width: int
) -> int:
    """A process that computes on the CPU: itself, its tensors, and what the C library's heap holds beside them.

    Never shrunk (training/host_allocator.py), the heap has holes where tensors that come and go did not fit together:
    a few of the largest, which are logits.
    A jump's fp32 values of packed weights, and two more while weight and residual are joined, leave theirs. Staging
    slots are touched as far as state comes through them. Constants as benchmarks/host_memory.py found them.
    """
    coming = sum(loss_moment(config, storage, width, autocast_copies(config, width), "cpu").values())
    holes = max(HOLES_BLOCKS * logits_block_bytes(config), HOLES_SHARE * coming)
    joined = hybrid.passing * (JUMP_COPIES + 2) // JUMP_COPIES if storage.residual else 0
    untouched = 0 if is_scratch(config) else max(storage.staging - storage.host_state, 0)
    return CPU_PROCESS_BYTES + max(moments.values()) + joined - untouched + int(holes)


def kept_checkpoints(config: RunConfig) -> int:
    """Checkpoints on the disk at once: the newest, the best, and the one being written."""
    has_best = config.checkpoint.keep_best and config.eval.interval_steps > 0
    return config.checkpoint.keep_last + int(has_best) + 1


def verdict(predicted_bytes: int, limit_bytes: int) -> Verdict:
    """Fits up to TIGHT_SHARE of the limit, tight up to the limit, does not fit beyond."""
    if predicted_bytes > limit_bytes:
        return Verdict.DOES_NOT_FIT
    return Verdict.TIGHT if predicted_bytes > limit_bytes * TIGHT_SHARE else Verdict.FITS


def _is_recomputed(config: RunConfig) -> bool:
    return config.memory.activation_checkpointing in ("all", "every_n")
