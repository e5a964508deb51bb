"""Going back to the last checkpoint when the numbers stop being numbers."""

from __future__ import annotations

from collections.abc import Mapping

from gpuworkbench.errors import WorkbenchError
from gpuworkbench.events.schema import ConfigChanged, Divergence, RunResumed
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.hybrid.context import BadStep
from gpuworkbench.training.activity import Activity
from gpuworkbench.training.checkpoint import Restored
from gpuworkbench.training.setup import TrainingRun

MAX_ROLLBACKS = 3


class NonfiniteError(WorkbenchError):
    """Loss or gradient became NaN or infinite and the config says stop, or rolling back did not help."""

    kind = "nonfinite"


def settle(run: TrainingRun) -> bool:
    """Read scalars that are still on the card; False when one was not finite and the run was rolled back."""
    bad = run.telemetry.flush()
    if bad is not None:
        recover(run, bad)
    return bad is None


def recover(run: TrainingRun, bad: BadStep) -> None:
    """A non-finite step: undo the jump it came from; else go back to the last checkpoint and pass over the data since,
    or raise NonfiniteError."""
    if run.hybrid.survives(bad):
        return
    what = f"{bad.what} is {bad.value} at step {bad.step}"
    hint = "lower optimizer.lr, or look at the data there"
    if run.config.train.on_nonfinite == "stop":
        raise NonfiniteError(what, "pass over that data with --set train.on_nonfinite=rollback, or lower optimizer.lr")
    rollbacks = run.progress.rollbacks + 1
    if rollbacks > MAX_ROLLBACKS:
        raise NonfiniteError(f"{what}, after {MAX_ROLLBACKS} rollbacks", hint)
    cursor = run.progress.sequences_seen + run.progress.skipped_sequences
    cursor += run.curriculum.place(run.progress.tokens_seen).begun_windows
    overridden = dict(run.settings.overridden)
    run.checkpointer.wait()
    run.activity = Activity.RESTORE
    restored = run.checkpointer.restore()
    run.activity = Activity.BETWEEN_STEPS
    if restored.step is None:
        raise NonfiniteError(f"{what}, before the first checkpoint", hint)
    warn_of_damage(run, restored)
    run.progress.rollbacks = rollbacks
    run.progress.skipped_sequences = cursor - run.progress.sequences_seen
    run.optimizer.zero_grad(set_to_none=True)
    run.events.emit(
        Divergence,
        step=bad.step,
        level="critical",
        signal=f"nonfinite {bad.what}",
        value=bad.value,
        threshold=None,
        action=f"rollback to step {restored.step}, passing over the data since",
    )
    announce_rollback(run, restored.step)
    if run.config.hybrid.enabled:
        run.phases.announce(restored.step, *run.hybrid.announcement(max(run.max_steps - restored.step, 0)))
    keep_settings(run, overridden)
    run.telemetry.start_window()


def warn_of_damage(run: TrainingRun, restored: Restored) -> None:
    """A warning for each checkpoint that was damaged and passed over."""
    for line in restored.damaged:
        hint = f"went back to step {restored.step}"
        run.events.emit(WarningEvent, step=restored.step or 0, code="checkpoint_damaged", message=line, hint=hint)


def announce_rollback(run: TrainingRun, from_step: int) -> None:
    """A rollback is an attempt of its own, so that readers drop the points after `from_step`."""
    run.events.attempt += 1
    first = run.start_event_fields
    run.events.emit(RunResumed, step=from_step, from_step=from_step, **first)


def note_setting(run: TrainingRun, key: str, value: object) -> tuple[float, float]:
    """Change a live setting; returns (old, new). Raises ConfigError."""
    old, new = run.settings.change(key, value)
    run.events.emit(ConfigChanged, step=run.progress.step, key=key, old=old, new=new)
    return old, new


def keep_settings(run: TrainingRun, wanted: Mapping[str, object]) -> None:
    """Make the live settings what they were before a restore took them back."""
    for key, value in wanted.items():
        if key in run.settings.values and run.settings[key] != value:
            note_setting(run, key, value)
