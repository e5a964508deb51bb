"""The [memory] section: which strategies keep a run small."""

from __future__ import annotations

from typing import Annotated, Literal

from gpuworkbench.config.fields import MAX_COUNT, Section, doc

EVERY_DEFAULT = 2  # blocks for each that is recomputed
PhasePrecision = (
    Annotated[Literal["auto", "fp32", "bf16", "fp16"], doc("memory.precision in this phase alone (default: the same)")]
    | None
)


class MemoryConfig(Section, frozen=True, kw_only=True):
    """What keeps the run small."""

    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        doc("autocast type of the matrix products; auto: bf16 on a card that has it, fp16 before, fp32 on CPU"),
    ] = "auto"
    precision_warmup: PhasePrecision = None
    precision_full: PhasePrecision = None
    precision_predict: PhasePrecision = None
    precision_correct: PhasePrecision = None
    chunked_cross_entropy: Annotated[
        bool, doc("compute head and loss in chunks of rows, so that the logits never exist as a whole")
    ] = False
    cross_entropy_chunk_rows: Annotated[
        int, doc("rows (tokens) per chunk of the chunked cross-entropy", ge=1, le=MAX_COUNT)
    ] = 1024
    activation_checkpointing: Annotated[
        Literal["none", "all", "every_n", "selective"],
        doc("recompute activations in backward: of all blocks, of every n-th, or only what is cheap to recompute"),
    ] = "none"
    activation_checkpointing_every: Annotated[
        int, doc("every_n: one block in this many is recomputed", ge=1, le=10_000)
    ] = EVERY_DEFAULT
    activation_offload: Annotated[bool, doc("keep what backward needs of each block in host memory meanwhile")] = False
    weights: Annotated[
        Literal["fp32", "bf16"], doc("type the weights are stored in on the device; gradients have the same type")
    ] = "fp32"
    stochastic_rounding: Annotated[
        bool, doc("bf16 weights: round updates up or down at random, in proportion, so that small ones add up")
    ] = False
    packed_optimizer: Annotated[
        bool,
        doc("adamw on bf16 weights: an 8-bit residual makes them 24-bit masters; moments are int8 in blocks of 256"),
    ] = False
    optimizer_in_backward: Annotated[
        bool, doc("update each parameter as soon as its gradient is there, and free the gradient")
    ] = False
    optimizer_offload: Annotated[
        Literal["none", "predict_aware", "streamed"],
        doc("optimizer state in host memory: during predicted phases, or always, streamed through the device"),
    ] = "none"
    offload_lookahead_steps: Annotated[
        int, doc("predict_aware: virtual steps before its use that the state's return begins", ge=1, le=1000)
    ] = 3
    offload_bucket_mib: Annotated[int, doc("bytes per transfer between device and host, in MiB", ge=1, le=4096)] = 64
