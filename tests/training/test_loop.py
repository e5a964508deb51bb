"""The training loop against closed forms and an independent loop: accumulation, clipping, order, validation, ends."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from gpuworkbench.config.schema import EarlyStoppingConfig
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.evaluate import note_validation, should_stop_early
from gpuworkbench.training.loop import optimizer_step, run_validation, set_learning_rate
from gpuworkbench.training.lr_schedule import lr_multiplier
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.state import Progress
from tests.fixtures.local_run import Forward, LocalRuns, final_tensors, killed, wrapped_forward

NO_DROPOUT = {"model.dropout": 0.0, "eval.interval_steps": 0}


def opened(local: LocalRuns, run_id: str, sets: dict[str, Any], *, double: bool = False) -> TrainingRun:
    run = local.open(local.create(run_id, sets))
    run.model.train()
    if double:
        run.model.double()
    return run


def steps(run: TrainingRun, n: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of the next `n` optimizer steps."""
    results = []
    for _ in range(n):
        set_learning_rate(run, run.progress.step + 1)
        loss, norm, _ = optimizer_step(run)
        run.progress.step += 1
        run.progress.sequences_seen += run.config.train.micro_batch_size * run.config.train.grad_accum_steps
        results.append((float(loss), float(norm)))
    run.events.close()
    return results


@pytest.mark.parametrize(("micro_batch_size", "grad_accum_steps"), [(1, 8), (2, 4), (4, 2)])
@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-10), (False, 2e-5)])
def test_accumulation_equals_one_big_batch(
    local: LocalRuns, micro_batch_size: int, grad_accum_steps: int, double: bool, tolerance: float
) -> None:
    """The independent loop: one batch of 8, torch's own clipping and its AdamW without fused kernels."""
    sets = {
        **NO_DROPOUT,
        "train.micro_batch_size": micro_batch_size,
        "train.grad_accum_steps": grad_accum_steps,
        "train.grad_clip_norm": 0.5,
        "optimizer.lr": 0.001,
    }
    name = f"accumulation-{micro_batch_size}-{double}"
    run = opened(local, name, sets, double=double)
    model = copy.deepcopy(run.model)
    config = run.config
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
    )
    expected = []
    for step in range(1, 5):
        for group in reference.param_groups:
            group["lr"] = 0.001 * lr_multiplier(step, config.schedule, run.max_steps)
        batches = [run.train_batches.at(8 * (step - 1) + i) for i in range(0, 8, micro_batch_size)]
        x, y = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
        assert x.shape == (8, 32)
        loss = model(x, y)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        reference.step()
        reference.zero_grad()
        expected.append((float(loss.detach()), float(norm)))
    assert steps(run, 4) == [pytest.approx(pair, rel=tolerance) for pair in expected]
    for found, wanted in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
def test_clipping_scales_the_gradient_and_reports_the_norm_before(local: LocalRuns, clip: float) -> None:
    run = opened(local, f"clip-{clip}", {**NO_DROPOUT, "train.grad_clip_norm": clip}, double=True)
    raw = copy.deepcopy(run.model)
    total = sum(raw(*run.train_batches.at(i)) for i in (0, 4)) / 2
    total.backward()
    raw_norm = math.sqrt(sum(float(p.grad.square().sum()) for p in raw.parameters() if p.grad is not None))
    used: list[torch.Tensor] = []
    step = run.optimizer.step
    run.optimizer.step = lambda *a: (used.extend(p.grad.clone() for p in run.trainable), step(*a))[1]  # type: ignore
    ((_, norm),) = steps(run, 1)
    assert norm == pytest.approx(raw_norm, rel=1e-12)
    factor = min(1.0, clip / raw_norm) if clip else 1.0
    wanted = [p.grad * factor for group in run.optimizer.param_groups for p in _same(raw, run.model, group["params"])]
    assert all(torch.allclose(f, w, rtol=1e-4, atol=1e-12) for f, w in zip(used, wanted, strict=True))


def _same(other: torch.nn.Module, model: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> list[Any]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [other.get_parameter(names[id(p)]) for p in parameters]


# Order of the log


@pytest.fixture(scope="module")
def whole(local: LocalRuns) -> RunPaths:
    """A run with checkpoints, validation and samples that fall on the same steps."""
    return local.trained("whole", {"checkpoint.interval_steps": 10, "sample.interval_steps": 20})


def test_the_log_tells_everything_in_order(local: LocalRuns, whole: RunPaths) -> None:
    events = local.events(whole)
    assert [event["seq"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_finished"
    assert kinds.index("phase_changed") < kinds.index("step")
    assert [event["step"] for event in local.events(whole, "step")] == list(range(1, 41))
    assert [event["step"] for event in local.events(whole, "eval")] == [10, 20, 30, 40]
    assert [event["step"] for event in local.events(whole, "sample")] == [20, 40]
    assert [event["step"] for event in local.events(whole, "checkpoint_saved")] == [10, 20, 30, 40]
    place = {(event["type"], event["step"]): position for position, event in enumerate(events)}
    assert place["step", 20] < place["eval", 20] < place["sample", 20] < place["step", 21]
    assert place["step", 20] < place["checkpoint_saved", 20]
    assert place["checkpoint_saved", 40] < place["run_finished", 40]
    last = events[-1]
    assert (last["status"], last["exit_code"], last["reason"]) == ("completed", 0, "reached max_steps = 40")


def test_step_events_say_what_was_done(local: LocalRuns, whole: RunPaths) -> None:
    for event in local.events(whole, "step"):
        assert event["tokens_seen"] == event["step"] * 4 * 2 * 32
        assert event["perplexity"] == pytest.approx(math.exp(event["loss"]))
        assert event["effective_batch_size"] == 8
        assert (event["phase"], event["precision"]) == ("full", "fp32")
        assert event["step_time_s"] > 0


def test_scalars_that_wait_on_the_card_come_in_order_and_are_the_same(local: LocalRuns, whole: RunPaths) -> None:
    """As on CUDA, where they are read every so many steps."""
    paths = local.create("waiting", {"checkpoint.interval_steps": 10, "sample.interval_steps": 20})
    run = local.open(paths)
    run.telemetry.interval_steps = 7
    assert finish(run).status == "completed"
    run.events.close()
    assert local.losses(paths) == local.losses(whole)
    assert [event["step"] for event in local.events(paths, "step")] == list(range(1, 41))
    place = {(event["type"], event["step"]): n for n, event in enumerate(local.events(paths))}
    assert place["step", 10] < place["eval", 10], "what is known of a step comes before what is done after it"
    assert place["step", 14] < place["eval", 20]


# Validation


def test_validation_is_the_mean_over_fixed_windows(local: LocalRuns) -> None:
    run = opened(local, "validation", {"eval.tokens": 512}, double=True)
    tokens = run.data.tokens("val")
    window = np.stack([tokens.slice(start, 33) for start in range(0, 512, 32)])
    run.model.eval()
    with torch.no_grad():
        expected = [float(run.model(torch.tensor(row[None, :-1]), torch.tensor(row[None, 1:]))) for row in window]
    run.model.train()
    rng = torch.get_rng_state()
    run_validation(run)
    run_validation(run)
    assert run.model.training
    assert torch.equal(torch.get_rng_state(), rng)
    run.events.close()
    first, second = local.events(run.paths, "eval")
    assert first["loss"] == second["loss"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert first["tokens"] == 512
    assert (first["is_best"], second["is_best"]) == (True, False)


@pytest.mark.parametrize(
    "sets",
    [{"eval.interval_steps": 0}, {"eval.interval_steps": 1}, {"sample.interval_steps": 3}],
    ids=lambda sets: next(iter(sets)) + "-" + str(next(iter(sets.values()))),
)
def test_looking_at_the_model_changes_nothing(local: LocalRuns, whole: RunPaths, sets: dict[str, Any]) -> None:
    """Dropout is on: a draw from the training's generator would show."""
    paths = local.trained(f"looking-{next(iter(sets)).partition('.')[0]}-{next(iter(sets.values()))}", sets)
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40)["model.safetensors"] == final_tensors(whole, 40)["model.safetensors"]
    assert final_tensors(paths, 40)["rng.safetensors"] == final_tensors(whole, 40)["rng.safetensors"]


def test_what_was_due_at_the_checkpoint_is_made_up_for(local: LocalRuns, whole: RunPaths) -> None:
    """A run that dies within a validation or a sample has saved the step before it, and resumes with them."""

    def dying_in_validation(forward: Forward, model: torch.nn.Module) -> Forward:
        def die(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if not model.training:
                raise torch.OutOfMemoryError("no room for the logits")
            return forward(x, y)

        return die

    paths = local.create("made-up-for", {"checkpoint.interval_steps": 10, "sample.interval_steps": 20})
    with wrapped_forward(dying_in_validation):
        assert local.attempt(paths) == 75
    assert [event["step"] for event in local.events(paths, "checkpoint_saved")] == [10]
    assert local.events(paths, "eval") == []
    assert local.attempt(paths) == 0
    for kind in ("eval", "sample"):
        values = [(e["step"], e.get("loss"), e.get("text")) for e in local.events(paths, kind)]
        assert values == [(e["step"], e.get("loss"), e.get("text")) for e in local.events(whole, kind)]
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


# Ends


def test_small_improvements_add_up() -> None:
    config, progress = EarlyStoppingConfig(patience=3, min_delta=0.1), Progress()
    counts = []
    for hundredths in range(500, 460, -4):
        note_validation(progress, hundredths / 100, config)
        counts.append(progress.evals_without_improvement)
    assert counts == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_patience_counts_validations_without_enough_improvement() -> None:
    config = EarlyStoppingConfig(patience=3, min_delta=0.1)
    progress = Progress()
    seen = []
    for step, loss in enumerate([5.0, 4.5, 4.45, 4.41, math.nan, 4.3, 4.29, 4.28, math.inf], start=1):
        progress.step = step
        is_best = note_validation(progress, loss, config)
        seen.append((is_best, progress.evals_without_improvement, should_stop_early(progress, config)))
    assert seen == [
        (True, 0, False),
        (True, 0, False),
        (True, 1, False),  # better, and best, but by less than min_delta
        (True, 2, False),
        (False, 3, True),
        (True, 0, False),  # 4.41 -> 4.3
        (True, 1, False),
        (True, 2, False),
        (False, 3, True),
    ]
    assert (progress.best_val_loss, progress.best_step) == (4.28, 8)
    assert not should_stop_early(progress, EarlyStoppingConfig(patience=0))


EARLY = {
    "early_stopping.patience": 3,
    "early_stopping.min_delta": 50.0,
    "eval.interval_steps": 5,
    "checkpoint.keep_best": False,
}


def test_early_stopping_survives_a_resume(local: LocalRuns) -> None:
    """The first validation improves on nothing, the next three do not improve by 50 nats: the run ends at step 20."""
    paths = local.trained("early", EARLY)
    last = local.events(paths)[-1]
    assert (last["step"], last["status"]) == (20, "completed")
    assert last["reason"] == "early stopping: no improvement in 3 validations"

    broken = local.create("early-killed", EARLY)
    killed(local.open(broken), 17)  # the last checkpoint is of step 14, two validations were without improvement
    assert local.attempt(broken) == 0
    assert local.events(broken)[-1]["step"] == 20
    assert local.losses(broken) == local.losses(paths)

    assert local.attempt(paths) == 0
    assert local.events(paths)[-1]["reason"] == last["reason"], "it does not train on by itself"
    assert len(local.losses(paths)) == 20
    local.change(paths, {"early_stopping.patience": 0})
    assert local.attempt(paths) == 0
    assert local.events(paths)[-1]["step"] == 40


def wrongly_scaled(forward: Forward, _model: torch.nn.Module) -> Forward:
    return lambda x, y: 1.3 * forward(x, y)


@pytest.mark.parametrize(("wrap", "warns"), [(None, False), (wrongly_scaled, True)])
def test_the_first_loss_of_a_fresh_model_is_checked(
    local: LocalRuns, wrap: Callable[[Forward, torch.nn.Module], Forward] | None, warns: bool
) -> None:
    paths = local.create(f"first-loss-{warns}", {"train.max_steps": 3, "eval.interval_steps": 0})
    if wrap is None:
        assert local.attempt(paths) == 0
    else:
        with wrapped_forward(wrap):
            assert local.attempt(paths) == 0
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "initial_loss"]
    assert [event["step"] for event in warnings] == ([1] if warns else [])
    if warns:
        # 257 tokens: ln 257 = 5.55
        assert "5.55" in warnings[0]["message"]


def test_epochs_become_steps(local: LocalRuns) -> None:
    paths = local.create("epochs", {"train.max_steps": 1000, "train.max_epochs": 0.5})
    run = local.open(paths)
    run.events.close()
    per_step = 4 * 2 * 32
    expected = math.ceil(0.5 * run.data.n_train_tokens / per_step)
    assert run.max_steps == expected < 1000
    assert local.events(paths, "run_started")[0]["max_steps"] == expected
    local.change(paths, {"train.max_epochs": 1.0})
    longer = local.open(paths)
    longer.events.close()
    assert longer.max_steps == math.ceil(run.data.n_train_tokens / per_step)
    changed = {event["key"]: event["new"] for event in local.events(paths, "config_changed")}
    assert changed == {"train.max_steps": longer.max_steps, "train.max_epochs": 1.0}


def test_the_heartbeat_knows_the_step(local: LocalRuns, whole: RunPaths) -> None:
    beat = msgspec.json.decode(whole.heartbeat.read_bytes())
    assert (beat["last_step"], beat["phase"]) == (40, "exited")


def test_the_loss_scale_of_fp16_is_taken_out_before_clipping(local: LocalRuns) -> None:
    norms = []
    for precision in ("fp32", "fp16"):
        paths = local.create(f"norm-{precision}", {"memory.precision": precision, "train.max_steps": 2})
        assert local.attempt(paths) == 0
        norms.append([event["grad_norm"] for event in local.events(paths, "step")])
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
