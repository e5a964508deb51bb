"""Which phases of a run make true steps, and how wide their matrix products are: what the trainer computes in, by
phase (memory/phase_precision.py), for formulas that know nothing of torch.
"""

from __future__ import annotations

from gpuworkbench.config.predictors import longest_prediction, predictor_names
from gpuworkbench.config.schema import RunConfig

FULL, WARMUP, PREDICT, CORRECT = "full", "warmup", "predict", "correct"
JUDGES_A_JUMP = frozenset({PREDICT, CORRECT})  # their true steps have the copy beside them that undoes it


def phases_with_steps(config: RunConfig) -> tuple[str, ...]:
    """Those with true steps, and so with a backward pass. A predicted phase has some where it is cut into jumps."""
    hybrid = config.hybrid
    if not hybrid.enabled:
        return (FULL,)
    is_cut = any(longest_prediction(hybrid, name).jumps > 1 for name in predictor_names(hybrid))
    warmup, predict = (WARMUP,) if hybrid.warmup_steps else (), (PREDICT,) if is_cut else ()
    return FULL, *warmup, *predict, CORRECT


def precision_of(config: RunConfig, phase: str) -> str:
    """The precision of a phase as configured. Validation is computed in `full`'s, a probe in `predict`'s."""
    own: str | None = getattr(config.memory, f"precision_{phase}")
    return own or config.memory.precision


def product_bytes(config: RunConfig, kind: str, phase: str = FULL) -> int:
    """Bytes of an element of the matrix products of a phase on a `kind` (cuda or cpu) device."""
    precision = precision_of(config, phase)
    is_wide = precision == "fp32" or (precision == "auto" and kind != "cuda")
    return 4 if is_wide and config.memory.weights == "fp32" else 2


def phase_of_each_width(config: RunConfig, kind: str) -> dict[int, str]:
    """The widths of true steps, each with the phase that takes most: one that judges a jump, where there is one."""
    phases = sorted(phases_with_steps(config), key=lambda phase: phase in JUDGES_A_JUMP)
    return {product_bytes(config, kind, phase): phase for phase in phases}
