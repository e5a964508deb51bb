"""The training loop, top to bottom.

One optimizer step: learning rate, `grad_accum_steps` micro-batches forward and backward, clip, update. Between
steps: control commands, checkpoints, validation, samples. Nothing here waits for the card outside logging steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from gpuworkbench.config.curriculum import Stage
from gpuworkbench.data.tokenization.tokenizer import end_of_text
from gpuworkbench.events.schema import CurriculumStage, Eval, Sample
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.hybrid.context import BadStep
from gpuworkbench.models.generate import generate
from gpuworkbench.training.activity import Activity
from gpuworkbench.training.batches import validation_batches
from gpuworkbench.training.controls import StopRequested
from gpuworkbench.training.evaluate import Validation, evaluate, note_validation, should_stop_early
from gpuworkbench.training.lr_schedule import lr_multiplier
from gpuworkbench.training.memory_errors import first_line, is_out_of_memory, let_go
from gpuworkbench.training.optim import clip_grad_norm, set_lr
from gpuworkbench.training.recovery import recover, settle
from gpuworkbench.training.settings import LR_SCALE
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.telemetry import Pending, perplexity

INDEX_INTERVAL_STEPS = 32
_Item = TypeVar("_Item")
INITIAL_LOSS_TOLERANCE = 1.0  # nats around ln V; GPT-2's initialisation lands within 0.3


def train(run: TrainingRun) -> str:
    """Train to the last step; returns why it ended.

    Raises StopRequested (signal or command), NonfiniteError, torch.OutOfMemoryError.
    """
    progress = run.progress
    run.model.train()
    reason = look_at_model(run)  # due at the step that the checkpoint was taken at
    if reason is not None:
        return reason
    run.telemetry.start_window()
    while progress.step < run.max_steps:
        obey_controls(run)
        bad = train_one_step(run)
        if bad is not None:
            recover(run, bad)
            continue
        reason = between_steps(run)
        if reason is not None:
            return reason
    return f"reached max_steps = {run.max_steps}"


def train_one_step(run: TrainingRun) -> BadStep | None:
    """One optimizer step, its counters and its telemetry; returns the first non-finite step that has come to light."""
    progress = run.progress
    run.activity = Activity.PREDICTION
    bad = run.hybrid.before_step()
    run.activity = Activity.BETWEEN_STEPS
    if bad is not None:
        return bad
    if run.hybrid.stop_reason:
        raise StopRequested(run.hybrid.stop_reason)
    lr = set_learning_rate(run, progress.step + 1)
    run.draws = run.parts["rng"].state()
    loss, grad_norm, scored = optimizer_step(run)
    stage = count_step(run)
    run.hybrid.after_step()
    run.average.update()
    run.activity = Activity.BETWEEN_STEPS
    pending = Pending(
        progress.step,
        loss,
        grad_norm,
        lr,
        progress.tokens_seen,
        run.phases.current,
        stage,
        scored,
        run.hybrid.moments(),
    )
    bad = run.telemetry.record(pending)
    run.heartbeat.progress(progress.step)
    if progress.step % INDEX_INTERVAL_STEPS == 0:
        run.index.tick()
    is_fresh = progress.step == 1 and not run.config.train.init_from
    if bad is None and is_fresh and (scored is None or scored > 0):
        check_initial_loss(run, loss)
    if bad is None and progress.step < run.max_steps and run.curriculum.place(progress.tokens_seen).stage != stage:
        bad = run.telemetry.flush()  # what is known of a step comes before what is said after it
        if bad is None:
            announce_stage(run)
    return bad


def count_step(run: TrainingRun) -> Stage:
    """Advance the counters by one step; returns the stage of sizes it belonged to."""
    progress = run.progress
    place = run.curriculum.place(progress.tokens_seen)
    progress.step += 1
    progress.sequences_seen += place.stage.sequences if place.ends_group else 0
    progress.begun_windows = 0 if place.ends_group else place.stage.sequences
    progress.begun_tokens = 0 if place.ends_group else (place.part + 1) * place.stage.seq_len
    progress.tokens_seen += place.stage.tokens_per_step
    return place.stage


def leave_begun_windows(run: TrainingRun) -> None:
    """A fork may go on with other sizes in the midst of a group of windows: pass over them, parts of them were read."""
    progress, place = run.progress, run.curriculum.place(run.progress.tokens_seen)
    if (place.begun_windows, place.part * place.stage.seq_len) != (progress.begun_windows, progress.begun_tokens):
        progress.skipped_sequences += progress.begun_windows
        progress.begun_windows = progress.begun_tokens = 0


def announce_stage(run: TrainingRun) -> None:
    """Emit the size that steps have from here on, where a curriculum changes it."""
    if not run.curriculum.is_on:
        return
    stage = run.curriculum.place(run.progress.tokens_seen).stage
    run.events.emit(
        CurriculumStage,
        step=run.progress.step,
        seq_len=stage.seq_len,
        effective_batch_size=stage.sequences,
        grad_accum_steps=stage.grad_accum_steps,
        tokens_seen=run.progress.tokens_seen,
        until_tokens=run.curriculum.end(stage),
    )


def obey_controls(run: TrainingRun) -> None:
    """Commands and signals. Raises StopRequested."""
    if run.controls is None:
        return
    waited_from = time.perf_counter()
    run.controls.obey()
    if time.perf_counter() - waited_from > 0.01:
        run.telemetry.start_window()


def set_learning_rate(run: TrainingRun, step: int) -> float:
    """The scheduled learning rate of `step` (1 is the first), written into the optimizer."""
    curriculum, tokens_seen = run.curriculum, run.progress.tokens_seen
    at, total = curriculum.schedule_step(step, tokens_seen, run.max_steps)
    multiplier = lr_multiplier(at, run.config.schedule, total) * curriculum.lr_factor(tokens_seen)
    lr = run.config.optimizer.lr * multiplier * run.settings[LR_SCALE] * run.hybrid.lr_factor()
    set_lr(run.optimizer, lr)
    return lr


def optimizer_step(run: TrainingRun) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Accumulate, clip, update. Returns the mean loss, the gradient norm before clipping, and with an answer mask the
    number of scored tokens, all on the device.

    The loss is the mean over the step's scored tokens, however they fall on its micro-batches.
    """
    place = run.curriculum.place(run.progress.tokens_seen)
    accum = place.stage.grad_accum_steps
    position = run.progress.sequences_seen + run.progress.skipped_sequences
    total: torch.Tensor | None = None
    scored: torch.Tensor | None = None
    run.activity = Activity.OFFLOAD
    for strategy in run.strategies:
        strategy.before_step()
    run.hybrid.before_update()
    run.activity = Activity.FORWARD
    for batch in run.train_batches.of_step(position, place):
        loss = run.forward(batch.x, batch.y)
        run.activity = Activity.BACKWARD
        if batch.scored is None or batch.share is None:
            run.scaler.scale(loss / accum if accum > 1 else loss).backward()
        else:
            loss = loss * batch.share.to(loss.dtype)
            run.scaler.scale(loss).backward()
            scored = batch.scored if scored is None else scored + batch.scored
        total = loss.detach() if total is None else total + loss.detach()
        run.activity = Activity.FORWARD
    assert total is not None
    run.activity = Activity.BACKWARD
    run.scaler.unscale_(run.optimizer)
    known = next((norm for strategy in run.strategies if (norm := strategy.grad_norm()) is not None), None)
    max_norm = run.hybrid.clip_norm(run.config.train.grad_clip_norm)
    grad_norm = clip_grad_norm(run.model, max_norm) if known is None else known
    run.activity = Activity.OFFLOAD
    for strategy in run.strategies:
        strategy.before_update()
    run.activity = Activity.UPDATE
    if not run.hybrid.skips(total / accum if scored is None else total, grad_norm):
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    for strategy in run.strategies:
        strategy.after_step()
    return total / accum if scored is None else total, grad_norm, scored


def between_steps(run: TrainingRun) -> str | None:
    """Checkpoint, validation and sample that are due at this step; returns a reason to end the run, or None.

    The checkpoint comes first: validation and sampling can run out of memory where training did not. A resume from
    it begins with what was still due, so nothing is left out. The last step is saved when all is done.
    """
    if due(run, "checkpoint.interval_steps") and run.progress.step < run.max_steps:
        if not settle(run):
            return None
        save_checkpoint(run)
    return look_at_model(run)


def look_at_model(run: TrainingRun) -> str | None:
    """Validation and sample that are due at this step and not done yet; returns a reason to end the run, or None."""
    progress, last = run.progress, run.progress.step == run.max_steps
    eval_due = run.n_eval_batches > 0 and progress.last_eval_step < progress.step
    eval_due = eval_due and due(run, "eval.interval_steps", or_at_end=last)
    sample_due = progress.last_sample_step < progress.step and due(run, "sample.interval_steps", or_at_end=last)
    if (eval_due or sample_due) and not settle(run):
        return None
    if eval_due and run_validation(run) and run.config.checkpoint.keep_best and not last:
        save_checkpoint(run)
    if sample_due:
        write_sample(run)
    if should_stop_early(progress, run.config.early_stopping):
        return f"early stopping: no improvement in {run.config.early_stopping.patience} validations"
    return None


def due(run: TrainingRun, interval_key: str, *, or_at_end: bool = False) -> bool:
    """Whether something done every so many steps (0: never), and perhaps at the last, is due at this step."""
    interval = run.settings[interval_key]
    return interval > 0 and (run.progress.step % interval == 0 or or_at_end)


def run_validation(run: TrainingRun) -> bool:
    """Evaluate, emit the event, note best and patience; returns whether it is the best so far."""
    with outside_step_time(run, Activity.VALIDATION), run.precisions.of_validation():
        result = validate(run)
        is_best = note_validation(run.progress, result.loss, run.config.early_stopping)
        emit_validation(run, "val", result, is_best=is_best)
        if run.average.is_on:
            with run.average.in_place():
                averaged = validate(run)
            emit_validation(run, "val_ema", averaged)
    return is_best


def validate(run: TrainingRun) -> Validation:
    """The loss on the validation batches with the weights as they are."""
    batches = validation_batches(
        run.data.tokens("val"),
        run.config.train_seq_len,
        run.config.eval_micro_batch_size,
        run.n_eval_batches,
        run.device.torch_device,
    )
    result = evaluate(run.forward, run.model, alive(run, batches), run.eval_rows)
    warn_of_smaller_batch(run)
    return result


def emit_validation(run: TrainingRun, split: str, result: Validation, *, is_best: bool = False) -> None:
    """The event of one validation."""
    run.events.emit(
        Eval,
        step=run.progress.step,
        split=split,
        loss=result.loss,
        perplexity=perplexity(result.loss) if math.isfinite(result.loss) else result.loss,
        tokens=result.tokens,
        duration_s=result.duration_s,
        is_best=is_best,
    )


def warn_of_smaller_batch(run: TrainingRun) -> None:
    """Say, once for each size, that a validation batch did not fit and was evaluated in parts."""
    for size, reason in run.eval_rows.take_news():
        run.events.emit(
            WarningEvent,
            step=run.progress.step,
            code="eval_batch_reduced",
            message=f"validation goes on with {size} sequences at a time, more do not fit ({reason})",
            hint=f"the loss is the same; to start with it: --set eval.micro_batch_size={size}",
        )


def write_sample(run: TrainingRun) -> None:
    """A sample with the model as it is now; where memory is too full for it, a warning and no sample."""
    run.progress.last_sample_step = run.progress.step
    try:
        with outside_step_time(run, Activity.SAMPLING):
            text = sample_text(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
        let_go(error)
    else:
        run.events.emit(Sample, step=run.progress.step, prompt=run.config.sample.prompt, text=text)
        return
    run.activity = Activity.BETWEEN_STEPS
    torch.cuda.empty_cache()
    run.events.emit(
        WarningEvent,
        step=run.progress.step,
        code="sample_out_of_memory",
        message=f"no room for a sample: {reason}",
        hint="training goes on; fewer --set sample.tokens, or sample from a checkpoint later",
    )


def sample_text(run: TrainingRun) -> str:
    """The configured prompt continued; a generator of its own."""
    sample = run.config.sample
    prompt_ids = list(run.tokenizer.encode(sample.prompt)) or [run.tokenizer.eot_id or 0]
    ids = generate(
        run.model,
        prompt_ids,
        sample.tokens,
        temperature=sample.temperature,
        top_k=sample.top_k,
        seed=sample.seed,
        stop_id=end_of_text(run.tokenizer),
    )
    return run.tokenizer.decode(list(alive(run, ids)))


def save_checkpoint(run: TrainingRun, *, wait: bool = False, is_asked_for: bool = False) -> None:
    """Checkpoint this step. Call `settle` before it, so that a non-finite state is never saved."""
    best_step = run.progress.best_step
    run.checkpointer.save(run.progress.step, best_step=best_step, wait=wait, is_asked_for=is_asked_for)


def check_initial_loss(run: TrainingRun, loss: torch.Tensor) -> None:
    """A fresh model knows nothing: its first loss must be near ln V, or something is wired wrongly."""
    expected = math.log(run.config.model.vocab_size)
    first = float(loss)
    if math.isfinite(first) and abs(first - expected) > INITIAL_LOSS_TOLERANCE:
        run.events.emit(
            WarningEvent,
            step=1,
            code="initial_loss",
            message=f"the first loss is {first:.2f}; an untrained model should start near ln V = {expected:.2f}",
            hint="check data.tokenizer against model.vocab_size",
        )


def alive(run: TrainingRun, items: Iterator[_Item]) -> Iterator[_Item]:
    """Pass `items` on, telling the heartbeat that work progresses."""
    for item in items:
        run.heartbeat.progress(run.progress.step)
        yield item


@contextmanager
def outside_step_time(run: TrainingRun, activity: Activity) -> Iterator[None]:
    """What happens inside is `activity`, and is not counted as time of a training step."""
    run.activity = activity
    try:
        yield
        run.activity = Activity.BETWEEN_STEPS  # not after a failure: whoever records it must know where
    finally:
        run.telemetry.start_window()
