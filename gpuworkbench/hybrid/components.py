"""What may advise the hybrid trainer, and the null objects that stand in for advice that is switched off."""

from __future__ import annotations

from gpuworkbench.hybrid.signals import StepSignals


class NoAdvice:
    """A component that is off: it learns nothing and has no opinion.

    A component that is on offers what of this it can; `parts` of the trainer saves it where it is Stateful.
    """

    wants_moments = False  # whether `observe` reads the statistics of the optimizer's moments

    def observe(self, signals: StepSignals) -> None:
        """One more true step; called in the order of the steps."""

    def confidence(self, horizon: int) -> float | None:
        """Probability that a jump over `horizon` steps is accepted; None: unknown."""
        return None

    def predicted_loss(self, steps: int) -> float | None:
        """The loss `steps` true steps ahead; None: unknown."""
        return None

    def corrected_loss(self, predicted: float) -> float:
        """A predicted loss, corrected by what such predictions missed before."""
        return predicted

    def diverged(self) -> str:
        """What forces a full phase now; "": nothing."""
        return ""

    def blocked(self) -> str:
        """Why no prediction should be made now; "": it may."""
        return ""

    def horizon_factor(self) -> float:
        """Shortens the horizon, in (0, 1]."""
        return 1.0

    def lr_factor(self) -> float:
        """Multiple of the learning rate of the next true step."""
        return 1.0
