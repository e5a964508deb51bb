"""What may advise the hybrid trainer, and the null objects that stand in for advice that is switched off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from gpuworkbench.hybrid.divergence import Verdict
from gpuworkbench.hybrid.signals import StepSignals


class Outcome(NamedTuple):
    """A jump that the probe has judged. `probes`: forward passes of the probe batch that it took."""

    step: int
    horizon: int
    accepted: bool
    probe_before: float
    probe_after: float
    probes: int
    seconds: float = 0.0  # of the whole jump; nothing in exact mode reads them


class Plan(NamedTuple):
    """What the bandit wants of the next prediction: `blocked` says why there should be none; None: no opinion."""

    blocked: str = ""
    horizon: int | None = None
    predictor: str | None = None


class NoAdvice:
    """A component that is off: it learns nothing and has no opinion.

    A component that is on offers what of this it can; `parts` of the trainer saves it where it is Stateful.
    """

    wants_moments = False  # whether `observe` reads the statistics of the optimizer's moments
    reads_each_step = False  # whether `skips` wants the scalars of each step before its update
    has_verdicts = False  # whether `verdicts` has any

    def observe(self, signals: StepSignals) -> None:
        """One more true step; called in the order of the steps."""

    def confidence(self, horizon: int) -> float | None:
        """Probability that a jump over `horizon` steps is accepted; None: unknown."""
        return None

    def predicted_loss(self, steps: int) -> float | None:
        """The loss `steps` true steps ahead; None: unknown."""
        return None

    def corrected_loss(self, predicted: float, steps: int) -> float:
        """A predicted loss `steps` ahead, corrected by what such predictions missed before."""
        return predicted

    def inputs(self) -> list[float]:
        """What corrections are made from: numbers of about unit scale that describe the state of training."""
        return []

    def judged(self, outcome: Outcome) -> None:
        """A jump was made and stands, or was undone at once."""

    def undone(self) -> None:
        """The last jump, which stood, was undone after true steps."""

    def latent(self) -> Any:
        """A vector that the state of training is read from, (n,) float64; None: unknown."""
        return None

    def verdicts(self) -> list[Verdict]:
        """What went wrong and is to be acted on before the next step; each is given once."""
        return []

    def skips(self, step: int, loss: float, grad_norm: float) -> bool:
        """Whether the update of the step with this loss and gradient norm must not be done."""
        return False

    def was_skipped(self, step: int) -> bool:
        """Whether the update of this step was left out."""
        return False

    def predicted(self, predicted: float | None, actual: float) -> None:
        """A predicted loss has met the truth."""

    def acted(self, actions: Sequence[str]) -> None:
        """These actions of a verdict are done by the component itself: shorter_horizon, lr_cut."""

    def plan(self, step: int, confidences: Mapping[str, float | None]) -> Plan:
        """Asked where a prediction could begin; the same for the same step. `confidences` by name of the predictors
        that may predict now."""
        return Plan()

    def phases_off(self) -> int:
        """Full phases up to the one that may end with a prediction, that one included; 0: prediction is not off."""
        return 0

    def clip_norm(self, configured: float) -> float:
        """The norm that gradients are clipped to."""
        return configured

    def news(self) -> list[tuple[str, str]]:
        """(code, message) of what people should know since it was asked last."""
        return []

    def changes(self) -> list[tuple[str, float, float, str]]:
        """(key, old, new, reason) of what it changed since it was asked last."""
        return []

    def after_step(self, step: int, controller: Any) -> None:
        """The weights after a true step, as the predictors' body reads them."""

    def phase_began(self) -> None:
        """A full phase begins; all scalars of the steps before it are known."""

    def correction(self, predictor: str, horizon: int) -> Callable[[str, Tensor], Tensor] | None:
        """A weight's name and what this predictor would move it by, to what it should be moved by; None: to that."""
        return None

    def residual_norm(self) -> float | None:
        """Length of what the last shadow proposal missed."""
        return None

    def cosine(self) -> float | None:
        """Of the last shadow proposals with what the weights really did; None: unknown."""
        return None

    def horizon_factor(self) -> float:
        """Shortens the horizon, in (0, 1]."""
        return 1.0

    def lr_factor(self) -> float:
        """Multiple of the learning rate of the next true step."""
        return 1.0
