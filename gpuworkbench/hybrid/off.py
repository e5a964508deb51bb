"""The hybrid trainer, switched off: every step is a full step."""

from __future__ import annotations

from torch import Tensor

from gpuworkbench.hybrid.context import BadStep
from gpuworkbench.parts import Stateful


class NoHybrid:
    """What the training loop calls where there is no prediction; see HybridTrainer."""

    stop_reason = ""

    def skips(self, loss: Tensor, grad_norm: Tensor) -> bool:
        """Every update is done."""
        return False

    def clip_norm(self, configured: float) -> float:
        """As configured."""
        return configured

    def announcement(self, remaining_steps: int) -> tuple[str, int]:
        """Why the phase is what it is, and its planned true steps."""
        return "every step is a full step", remaining_steps

    def parts(self) -> dict[str, Stateful]:
        """Nothing to save."""
        return {}

    def before_step(self) -> BadStep | None:
        """Nothing happens between steps."""
        return None

    def before_update(self) -> None:
        """Nothing is owed to the optimizer."""

    def after_step(self) -> None:
        """Nobody watches."""

    def lr_factor(self) -> float:
        """The schedule alone decides."""
        return 1.0

    def moments(self) -> Tensor | None:
        """Nobody asks."""
        return None

    def survives(self, bad: BadStep) -> bool:
        """No jump to undo."""
        return False
