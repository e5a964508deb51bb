"""What each predictor is, without torch: how its jumps are judged, how far they reach, and the bytes it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from gpuworkbench import registry

if TYPE_CHECKING:
    from gpuworkbench.config.hybrid_section import HybridConfig

Rule = Literal["improve", "guard"]
GUARD_STANDARD_ERRORS = 2.0  # a guarded jump is undone beyond this many; about 1 of 40 harmless ones is, by chance
SHADOW_BYTES = 8  # a parameter
MAX_DISPLACEMENTS = 5  # of `subspace`, per layer group


class PredictorSpec(NamedTuple):
    """One predictor.

    `rule`: improve (undone unless the probe loss falls) or guard (undone only where the paired probe loss rises by
    more than GUARD_STANDARD_ERRORS standard errors). `averages`: it stands for hybrid.full_steps whatever the
    confidence, in one jump without true steps in between. `doubles`: it reaches 1, 2, 4, ... steps while the probe
    loss falls. `window`: the part of the run, as fractions of its steps, in which it jumps.
    """

    title: str
    rule: Rule
    bytes_per_parameter: Callable[[HybridConfig], int]
    averages: bool = False
    doubles: bool = False
    window: tuple[float, float] = (0.0, 1.0)


NULL = PredictorSpec("no change: the control", "guard", lambda _config: 0, averages=True)
RANDOM = PredictorSpec("a random direction of the trend's length: the control of the jumps", "improve", lambda _: 4)
OUTER_NESTEROV = PredictorSpec(
    "Nesterov momentum on the displacement of each full phase (SNOO, arXiv 2510.15830)",
    "guard",
    lambda _config: 8,
    averages=True,
)
EMA_TREND = PredictorSpec(
    "running mean of the displacements, extrapolated", "improve", lambda _config: 8, window=(0.13, 0.70)
)
LINE_JUMP = PredictorSpec(
    "the last step repeated, doubling while the probe improves (Fast Forward, EMNLP 2024)",
    "improve",
    lambda _config: 4,
    doubles=True,
)
SUBSPACE = PredictorSpec(
    "a linear recurrence of the last displacements of each layer group, through small Gram matrices (DMD)",
    "improve",
    lambda _config: 4 * (MAX_DISPLACEMENTS + 1),
)
_BYTES = SUBSPACE.bytes_per_parameter
LINEAR = PredictorSpec("the path's average, its next looks by least squares from hindsight", "improve", _BYTES)
MLP = PredictorSpec("the path's average, its next looks by a small network from hindsight", "improve", _BYTES)
LEARNED = PredictorSpec("the path's average, its next looks by the dynamics model's state", "improve", _BYTES)


def spec_of(name: str) -> PredictorSpec:
    """The spec of hybrid.predictor. Raises ConfigError for an unknown one."""
    spec: PredictorSpec = registry.load(registry.lookup(registry.PREDICTORS, name, "hybrid.predictor").spec)
    return spec


def predictor_names(config: HybridConfig) -> tuple[str, ...]:
    """Every predictor that a run holds: hybrid.predictor, and with the bandit those that it may choose as well."""
    further = config.bandit_predictors.split(",") if config.bandit and config.bandit_predictors else []
    return config.predictor, *(name.strip() for name in further)


class Prediction(NamedTuple):
    """A predicted phase: virtual steps of its longest jump, and its jumps, with one true step between two."""

    longest_jump: int
    jumps: int


def longest_prediction(config: HybridConfig, name: str) -> Prediction:
    """The longest that a predictor may make (PhaseController.horizon and .jumps_of)."""
    averages = spec_of(name).averages
    horizon = config.full_steps if averages else config.max_predict_steps
    longest = min(horizon, 0 if averages else config.correction_interval) or horizon
    return Prediction(longest, -(-horizon // longest))


def predictor_state_bytes(config: HybridConfig, n_trainable: int) -> int:
    """Bytes that the predictors keep for `n_trainable` parameters, undo copies left out; 0 where prediction is off.

    With the corrector, a shadow proposal and the weights it began at are kept beside for a part of each full phase.
    """
    shadow = SHADOW_BYTES if config.corrector else 0
    kept = sum(spec_of(name).bytes_per_parameter(config) for name in predictor_names(config))
    return (kept + shadow) * n_trainable if config.enabled else 0


def undo_bytes(config: HybridConfig, weight_bytes: int, optimizer_bytes: int) -> int:
    """Bytes of the copy that a jump can be undone from, from the jump until it is judged: weights and optimizer."""
    return weight_bytes + optimizer_bytes if config.enabled else 0
