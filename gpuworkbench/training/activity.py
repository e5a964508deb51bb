"""What the trainer is doing at this moment: what a failure is said to have happened in, and what it leaves behind."""

from __future__ import annotations

from enum import StrEnum


class Activity(StrEnum):
    """The parts of a run that ask for memory of their own."""

    BETWEEN_STEPS = "between steps"
    FORWARD = "forward"
    BACKWARD = "backward"
    OFFLOAD = "offload"  # a memory strategy moves state before or after a step
    UPDATE = "optimizer step"
    PREDICTION = "prediction"
    RESTORE = "going back to a checkpoint"
    VALIDATION = "validation"
    SAMPLING = "sampling"

    @property
    def may_tear(self) -> bool:
        """Whether weights and optimizer may be half changed in it, so that they belong to no step."""
        return self in (Activity.OFFLOAD, Activity.UPDATE, Activity.PREDICTION, Activity.RESTORE)

    @property
    def draws(self) -> bool:
        """Whether it draws from the generators that training goes on with (dropout)."""
        return self in (Activity.FORWARD, Activity.BACKWARD)
