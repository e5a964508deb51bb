"""The analytic tier of the planner: bytes by part from formulas alone, in well under a millisecond.

It describes what the trainer does now: weights, gradients and the optimizer's state in fp32, autocast copies of the
matrices in the precision of the products, every activation kept for backward. All parts are counted as if they were
at their largest at the same time, so the sum is an upper estimate. Predicted, not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct

from gpuworkbench.config.optimizers import optimizer_state_bytes
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import GIB, MIB

FP32_BYTES = 4
# torch.compile recomputes pointwise results: about 20 of 36 bytes per element are still kept.
COMPILED_SHARE = 20 / 36
# Plain cross-entropy in backward: log-probabilities, their gradient and the logits' gradient, each fp32.
PLAIN_LOGITS_BYTES = 12
GEMM_WORKSPACE_BYTES = 64 * MIB
CUDA_CONTEXT_BYTES = GIB // 2  # 0.35 to 0.8 GiB, by driver and card
CPU_PROCESS_BYTES = 450 * MIB  # interpreter, torch and its thread pools
CUDA_PROCESS_BYTES = 1_200 * MIB  # the same with the CUDA libraries
TIGHT_SHARE = 0.92  # beyond this share of the limit, fragmentation decides

PARTS = (
    "weights",
    "gradients",
    "optimizer state",
    "autocast copies",
    "activations",
    "logits",
    "workspace",
    "CUDA context",
)


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
    """Predicted bytes. `parts` (of PARTS, all present) live where the run computes and sum up to `total_bytes`."""

    parts: Mapping[str, int]
    total_bytes: int
    host_bytes: int
    disk_bytes: int
    n_params: int


def estimate(config: RunConfig, *, kind: str, compute_bytes: int | None = None) -> Estimate | None:
    """What `config` takes on a `kind` (cuda or cpu) device; None while its vocabulary is unknown.

    `compute_bytes`: bytes of an element of the matrix products (default: as memory.precision says, `auto` being 2
    on a card and 4 on a CPU). P (w + g + o) + k L C B T + logits + workspace + context.
    """
    known = with_known_vocabulary(config)
    if known is None:
        return None
    width = compute_bytes or product_bytes(known.memory.precision, kind)
    n_params = known.model.n_allocated_params()
    state_bytes = optimizer_state_bytes(known.optimizer, known.model.parameter_shapes())
    is_cuda = kind == "cuda"
    sizes = (
        n_params * FP32_BYTES,
        n_params * FP32_BYTES,
        state_bytes,
        n_params * width if width < FP32_BYTES else 0,
        activation_bytes(known, width),
        logits_bytes(known, width),
        workspace_bytes(known, width),
        CUDA_CONTEXT_BYTES if is_cuda else 0,
    )
    total = sum(sizes)
    saved = n_params * FP32_BYTES + state_bytes
    return Estimate(
        parts=MappingProxyType(dict(zip(PARTS, sizes, strict=True))),
        total_bytes=total,
        host_bytes=CUDA_PROCESS_BYTES + saved if is_cuda else CPU_PROCESS_BYTES + total,
        disk_bytes=saved * kept_checkpoints(known),
        n_params=known.model.n_params(),
    )


def product_bytes(precision: str, kind: str) -> int:
    """Bytes of an element of the matrix products."""
    if precision == "auto":
        precision = "bf16" if kind == "cuda" else "fp32"
    return 4 if precision == "fp32" else 2


def activation_bytes(config: RunConfig, width: int) -> int:
    """What backward needs of one micro-batch's forward pass."""
    share = 1.0 if config.device.compile == "off" else COMPILED_SHARE
    return int(rows(config) * config.model.saved_bytes_per_token(width) * share)


def logits_bytes(config: RunConfig, width: int) -> int:
    """Head and loss: all logits three times in fp32, or one chunk of them with the table's own gradient."""
    model, n_rows = config.model, rows(config)
    if not config.memory.chunked_cross_entropy:
        return n_rows * model.padded_vocab_size * PLAIN_LOGITS_BYTES
    chunk = min(n_rows, config.memory.cross_entropy_chunk_rows) * model.padded_vocab_size
    table = model.padded_vocab_size * model.n_embd
    gradients = table * (FP32_BYTES + width) + n_rows * model.n_embd * width
    return chunk * (FP32_BYTES + (2 * width if width < FP32_BYTES else 0)) + gradients


def workspace_bytes(config: RunConfig, width: int) -> int:
    """Scratch memory of the matrix products, and the gradients that flow through one block."""
    return GEMM_WORKSPACE_BYTES + rows(config) * config.model.n_embd * 10 * width


def rows(config: RunConfig) -> int:
    """Tokens of one micro-batch."""
    return config.train.micro_batch_size * config.train_seq_len


def kept_checkpoints(config: RunConfig) -> int:
    """Checkpoints on the disk at once: the newest, the best, and the one being written."""
    has_best = config.checkpoint.keep_best and config.eval.interval_steps > 0
    return config.checkpoint.keep_last + int(has_best) + 1


def verdict(predicted_bytes: int, limit_bytes: int) -> Verdict:
    """Fits up to TIGHT_SHARE of the limit, tight up to the limit, does not fit beyond."""
    if predicted_bytes > limit_bytes:
        return Verdict.DOES_NOT_FIT
    return Verdict.TIGHT if predicted_bytes > limit_bytes * TIGHT_SHARE else Verdict.FITS
