"""What the loop does when the numbers stop being numbers, and when the card is full."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open

from gpuworkbench.runs.manifest import list_checkpoints, verify_checkpoint
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.batches import TrainBatches
from tests.fixtures.local_run import Forward, LocalRuns, Wrap, final_tensors, killed, wrapped_forward

BAD_STEP = 17  # the checkpoints before it are of steps 7 and 14
SEQUENCES_PER_STEP = 8


@pytest.fixture(scope="module")
def bad_inputs(local: LocalRuns) -> torch.Tensor:
    """The first micro-batch of BAD_STEP, in the order that every run here has."""
    run = local.open(local.create("to-look-at-the-data"))
    run.events.close()
    return run.train_batches.at((BAD_STEP - 1) * SEQUENCES_PER_STEP)[0]


def bad_loss(inputs: torch.Tensor, value: float) -> Wrap:
    """The loss is `value` on these inputs: determined by the data, so that a resume meets it again."""

    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        return lambda x, y: forward(x, y) * (value if model.training and torch.equal(x, inputs) else 1.0)

    return wrap


def bad_gradient(inputs: torch.Tensor, _value: float) -> Wrap:
    """The loss stays finite, its gradient is NaN: the root of 0 has an infinite slope, times 0."""

    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        weight = next(model.parameters())

        def poisoned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = forward(x, y)
            return loss + (weight.sum() * 0.0).sqrt() if torch.equal(x, inputs) else loss

        return poisoned

    return wrap


def assert_all_checkpoints_are_finite(paths: RunPaths) -> None:
    for reference in list_checkpoints(paths):
        verify_checkpoint(reference.path)
        with safe_open(reference.path / "model.safetensors", framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                assert torch.isfinite(tensors.get_tensor(name)).all(), (reference.step, name)


def progress_at(paths: RunPaths, step: int) -> dict[str, Any]:
    return dict(json.loads((paths.checkpoint(step) / "state.json").read_text())["parts"]["progress"]["values"])


@pytest.mark.parametrize(
    ("make", "value", "what"),
    [
        (bad_loss, float("nan"), "loss is nan"),
        (bad_loss, float("inf"), "loss is inf"),
        (bad_gradient, float("nan"), "gradient norm is nan"),
    ],
)
def test_stop_ends_the_run_and_keeps_the_last_finite_state(
    local: LocalRuns, bad_inputs: torch.Tensor, make: Any, value: float, what: str
) -> None:
    paths = local.create(f"stop-{what.replace(' ', '-')}", {"eval.interval_steps": 4, "checkpoint.keep_best": True})
    with wrapped_forward(make(bad_inputs, value)):
        assert local.attempt(paths) == 1
    (error,) = local.events(paths, "error")
    assert error["kind"] == "nonfinite"
    assert error["message"] == f"{what} at step {BAD_STEP}"
    last = local.events(paths)[-1]
    assert (last["type"], last["status"], last["exit_code"]) == ("run_finished", "failed", 1)
    assert what in last["reason"]
    assert list_checkpoints(paths)[0].step == 16, "the best so far, saved at its validation"
    assert_all_checkpoints_are_finite(paths)
    assert progress_at(paths, 16)["best_step"] == 16
    bad_step = local.events(paths, "step")[-1]
    assert bad_step["step"] == BAD_STEP
    if make is bad_loss:
        assert bad_step["loss"] is None
        assert bad_step["nonfinite"] == ["loss", "perplexity", "grad_norm"]


def test_a_checkpoint_in_flight_is_finished_before_a_failed_run_ends(
    local: LocalRuns, bad_inputs: torch.Tensor
) -> None:
    """The save of step 16 is still being written when step 17 fails."""
    paths = local.create("in-flight", {"checkpoint.interval_steps": 16, "eval.interval_steps": 0})
    with wrapped_forward(bad_loss(bad_inputs, float("nan"))):
        assert local.attempt(paths) == 1
    kinds = [event["type"] for event in local.events(paths)]
    assert "checkpoint_saved" in kinds
    assert kinds[-1] == "run_finished"
    assert [reference.step for reference in list_checkpoints(paths)] == [16]


def test_weights_that_explode_are_never_saved(local: LocalRuns) -> None:
    """A real overflow: the loss of the first step is fine, the update is not."""
    paths = local.create("explodes", {"optimizer.lr": 1e37, "checkpoint.interval_steps": 1, "eval.interval_steps": 1})
    assert local.attempt(paths) == 1
    assert local.events(paths, "error")[0]["kind"] == "nonfinite"
    assert_all_checkpoints_are_finite(paths)
    assert not any(event["is_best"] for event in local.events(paths, "eval") if event["loss"] is None)


def test_a_validation_that_is_not_finite_is_never_best(local: LocalRuns) -> None:
    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        calls = 0

        def nan_at_the_second(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += not model.training
            is_bad = not model.training and 2 < calls <= 4  # two batches a validation
            return forward(x, y) * (float("nan") if is_bad else 1.0)

        return nan_at_the_second

    paths = local.create("nan-validation", {"checkpoint.interval_steps": 0, "eval.interval_steps": 10})
    with wrapped_forward(wrap):
        assert local.attempt(paths) == 0
    found = [(event["step"], event["loss"] is None, event["is_best"]) for event in local.events(paths, "eval")]
    assert found == [(10, False, True), (20, True, False), (30, False, True), (40, False, True)]
    assert local.events(paths, "eval")[1]["nonfinite"] == ["loss", "perplexity"]


# Rolling back

ROLLBACK = {"train.on_nonfinite": "rollback"}


@pytest.fixture(scope="module")
def rolled_back(local: LocalRuns, bad_inputs: torch.Tensor) -> RunPaths:
    """A run that met bad data at step 17, went back to step 14 and trained to its end."""
    paths = local.create("rolled-back", ROLLBACK)
    with wrapped_forward(bad_loss(bad_inputs, float("nan"))):
        assert local.attempt(paths) == 0
    return paths


def test_rollback_goes_back_and_passes_over_the_data(local: LocalRuns, rolled_back: RunPaths) -> None:
    (divergence,) = local.events(rolled_back, "divergence")
    assert (divergence["step"], divergence["signal"], divergence["value"]) == (BAD_STEP, "nonfinite loss", None)
    assert divergence["action"] == "rollback to step 14, passing over the data since"
    (resumed,) = local.events(rolled_back, "run_resumed")
    assert (resumed["attempt"], resumed["from_step"], resumed["step"]) == (2, 14, 14)
    steps = [(event["attempt"], event["step"]) for event in local.events(rolled_back, "step")]
    assert steps == [*((1, step) for step in range(1, 18)), *((2, step) for step in range(15, 41))]
    after = [event for event in local.events(rolled_back, "step") if event["attempt"] == 2]
    assert all(event["loss"] is not None for event in after)
    progress = progress_at(rolled_back, 40)
    assert progress["rollbacks"] == 1
    assert progress["skipped_sequences"] == 3 * SEQUENCES_PER_STEP
    assert progress["sequences_seen"] == 40 * SEQUENCES_PER_STEP
    assert local.events(rolled_back)[-1]["status"] == "completed"
    assert_all_checkpoints_are_finite(rolled_back)


def test_the_data_after_a_rollback_is_what_comes_after_the_bad_step(
    local: LocalRuns, bad_inputs: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = []
    at = TrainBatches.at
    monkeypatch.setattr(TrainBatches, "at", lambda self, *where: (positions.append(where[0]), at(self, *where))[1])
    paths = local.create("positions", ROLLBACK)
    with wrapped_forward(bad_loss(bad_inputs, float("nan"))):
        assert local.attempt(paths) == 0
    total = 17 + 26
    assert positions == list(range(0, total * SEQUENCES_PER_STEP, 4)), "nothing twice, nothing left out but the bad"


@pytest.mark.parametrize("step", [15, 17, 19, 25])
def test_a_kill_after_a_rollback_resumes_identically(
    local: LocalRuns, bad_inputs: torch.Tensor, rolled_back: RunPaths, step: int
) -> None:
    """Step 15 to 19 are trained again after the rollback, before the next checkpoint at 21."""
    paths = local.create(f"rolled-back-killed-{step}", ROLLBACK)
    with wrapped_forward(bad_loss(bad_inputs, float("nan"))):
        run = local.open(paths)
        killed_on_second_pass(run, step)
        assert local.events(paths, "divergence")
        assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(rolled_back)
    assert final_tensors(paths, 40) == final_tensors(rolled_back, 40)


def killed_on_second_pass(run: Any, step: int) -> None:
    """Die with `step` steps done after the rollback."""
    rolled_back = run.events.attempt
    at = run.train_batches.at

    def dying(*where: Any) -> Any:
        if run.events.attempt > rolled_back and run.progress.step == step:
            raise KeyboardInterrupt
        return at(*where)

    run.train_batches.at = dying
    with pytest.raises(KeyboardInterrupt):
        finish(run)
    run.events.close()


def test_there_is_nothing_to_go_back_to_before_the_first_checkpoint(local: LocalRuns, bad_inputs: torch.Tensor) -> None:
    paths = local.create("too-early", {**ROLLBACK, "checkpoint.interval_steps": 0, "eval.interval_steps": 0})
    with wrapped_forward(bad_loss(bad_inputs, float("nan"))):
        assert local.attempt(paths) == 1
    (error,) = local.events(paths, "error")
    assert error["message"] == "loss is nan at step 17, before the first checkpoint"


def test_rolling_back_has_an_end(local: LocalRuns) -> None:
    """Everything after the first checkpoint is bad: after three rollbacks the run fails."""

    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        calls = 0

        def broken_card(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += model.training
            return forward(x, y) * (float("nan") if calls > 2 * 9 else 1.0)

        return broken_card

    paths = local.create("no-way-out", {**ROLLBACK, "eval.interval_steps": 0})
    with wrapped_forward(wrap):
        assert local.attempt(paths) == 1
    assert len(local.events(paths, "divergence")) == 3
    assert "after 3 rollbacks" in local.events(paths, "error")[0]["message"]
    assert [reference.step for reference in list_checkpoints(paths)] == [7]


def test_rollback_says_that_a_checkpoint_was_damaged(local: LocalRuns, bad_inputs: torch.Tensor) -> None:
    paths = local.create("damaged-rollback", {**ROLLBACK, "eval.interval_steps": 0})
    with wrapped_forward(bad_loss(bad_inputs, float("nan"))):
        run = local.open(paths)
        at = run.train_batches.at

        def damaging(*where: Any) -> Any:
            if where[0] == 16 * SEQUENCES_PER_STEP and run.progress.rollbacks == 0:
                run.checkpointer.wait()
                (paths.checkpoint(14) / "state.json").write_text("{}")
            return at(*where)

        run.train_batches.at = damaging  # type: ignore[method-assign]
        assert finish(run).status == "completed"
        run.events.close()
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "checkpoint_damaged"]
    assert [event["hint"] for event in warnings] == ["went back to step 7"]
    assert [event["from_step"] for event in local.events(paths, "run_resumed")] == [7]


# The card is full


def full_card(at_step: int) -> Wrap:
    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        calls = 0

        def out_of_memory(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += model.training
            if calls > 2 * (at_step - 1):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore text")
            return forward(x, y)

        return out_of_memory

    return wrap


@pytest.fixture(scope="module")
def whole(local: LocalRuns) -> RunPaths:
    return local.trained("whole")


@pytest.mark.parametrize("step", [1, 5, 8])
def test_out_of_memory_stops_with_a_checkpoint_and_resumes_identically(
    local: LocalRuns, whole: RunPaths, step: int
) -> None:
    paths = local.create(f"full-{step}")
    with wrapped_forward(full_card(step)):
        assert local.attempt(paths) == 75
    (error,) = local.events(paths, "error")
    assert error["kind"] == "cuda_oom"
    assert error["message"] == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "--set train.micro_batch_size=2 --set train.grad_accum_steps=4" in error["hint"]
    assert list_checkpoints(paths)[0].step == step - 1
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


def test_out_of_memory_within_the_first_update_can_be_resumed(local: LocalRuns, whole: RunPaths) -> None:
    """The first update allocates the optimizer's state, parameter by parameter, until the card is full."""
    paths = local.create("full-in-update")
    run = local.open(paths)

    def half_an_update(*_: object) -> None:
        for parameter in run.trainable[:5]:
            run.optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter)}
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run.optimizer.step = half_an_update  # type: ignore[method-assign, assignment]
    assert finish(run).exit_code == 75
    run.events.close()
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


def test_a_kill_is_what_the_other_tests_take_it_for(local: LocalRuns, whole: RunPaths) -> None:
    paths = local.create("killed")
    killed(local.open(paths), 19)
    assert local.events(paths)[-1]["type"] != "run_finished"
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)
