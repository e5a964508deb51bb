"""Memory is full: in each place a run asks for it, from the exception to the resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gpuworkbench.errors import ConfigError
from gpuworkbench.launch.resume import resume
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.attempt import Outcome, finish
from gpuworkbench.training.checkpoint_files import HostBuffers
from gpuworkbench.training.evaluate import Rows, evaluate
from gpuworkbench.training.live_tensors import largest
from gpuworkbench.training.setup import TrainingRun
from tests.fixtures.local_run import Forward, LocalRuns, Wrap, final_tensors, wrapped_forward

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.57 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 14.30 GiB memory in use. Of the allocated memory 13.00 GiB "
    "is allocated by PyTorch, and 300.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated ..."
)


@pytest.fixture(scope="module")
def whole(local: LocalRuns) -> RunPaths:
    return local.trained("whole", {"sample.interval_steps": 20})


def attempt(run: TrainingRun) -> Outcome:
    outcome = finish(run)
    run.events.close()
    return outcome


class _FullInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(FULL)


def full_in_backward(at_micro_batch: int) -> Wrap:
    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        calls = 0

        def full(x: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += model.training
            loss = forward(x, y)
            return _FullInBackward.apply(loss) if calls == at_micro_batch and model.training else loss

        return full

    return wrap


@pytest.mark.parametrize("micro_batch", [9, 10])
def test_backward_stops_with_a_checkpoint_and_resumes_identically(
    local: LocalRuns, whole: RunPaths, micro_batch: int
) -> None:
    """In the first or the second half of step 5: dropout has drawn, and draws the same again."""
    paths = local.create(f"backward-{micro_batch}", {"sample.interval_steps": 20})
    with wrapped_forward(full_in_backward(micro_batch)):
        assert local.attempt(paths) == 75
    (error,) = local.events(paths, "error")
    assert (error["kind"], error["where"], error["why"]) == ("cuda_oom", "backward", "too_big")
    assert error["message"].startswith("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert error["fix"] == {"train.micro_batch_size": 2, "train.grad_accum_steps": 4}
    last = local.events(paths)[-1]
    assert (last["status"], last["exit_code"]) == ("stopped", 75)
    assert last["reason"] == "out of memory in backward: the host's memory is full"
    assert list_checkpoints(paths)[0].step == 4
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


def fails_half_way(run: TrainingRun, at_call: int) -> None:
    """The update of one step changes a weight, then memory is full."""
    step, calls = run.optimizer.step, 0

    def updating(*arguments: Any, **kwargs: Any) -> object:
        nonlocal calls
        calls += 1
        if calls == at_call:
            with torch.no_grad():
                run.trainable[0].add_(1.0)
            raise torch.OutOfMemoryError(FULL)
        return step(*arguments, **kwargs)

    run.optimizer.step = updating  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(("at_step", "saved"), [(1, None), (10, 7), (15, 14)])
def test_half_an_update_is_never_saved(local: LocalRuns, whole: RunPaths, at_step: int, saved: int | None) -> None:
    paths = local.create(f"update-{at_step}", {"sample.interval_steps": 20})
    run = local.open(paths)
    fails_half_way(run, at_step)
    outcome = attempt(run)
    assert (outcome.status, outcome.exit_code, outcome.step) == ("stopped", 75, at_step - 1)
    assert ("begins anew" in outcome.reason) == (saved is None)
    (error,) = local.events(paths, "error")
    assert error["where"] == "optimizer step"
    assert next((reference.step for reference in list_checkpoints(paths)), None) == saved
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


def full_beyond(rows: int, *, message: str = FULL) -> Wrap:
    """Validation has room for so many sequences."""

    def wrap(forward: Forward, model: torch.nn.Module) -> Forward:
        def limited(x: Tensor, y: Tensor) -> Tensor:
            if not model.training and len(x) > rows:
                raise torch.OutOfMemoryError(message)
            return forward(x, y)

        return limited

    return wrap


@pytest.mark.parametrize(("rows", "told"), [(3, [2]), (1, [2, 1])])
def test_validation_goes_on_in_smaller_batches(local: LocalRuns, whole: RunPaths, rows: int, told: list[int]) -> None:
    paths = local.create(f"eval-{rows}", {"sample.interval_steps": 20})
    with wrapped_forward(full_beyond(rows)):
        assert local.attempt(paths) == 0
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "eval_batch_reduced"]
    assert [event["hint"].rpartition("=")[2] for event in warnings] == [str(size) for size in told], "once each"
    assert {event["step"] for event in warnings} == {10}
    losses, expected = ([e["loss"] for e in local.events(of, "eval")] for of in (paths, whole))
    assert losses == pytest.approx(expected, rel=1e-6)
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40)["model.safetensors"] == final_tensors(whole, 40)["model.safetensors"]


def test_the_mean_stays_weighted_by_scored_tokens() -> None:
    """Parts with one scored token and with many: the reference is the mean over all tokens."""
    torch.manual_seed(1)
    y = torch.full((5, 8), -100)
    y[0, 0] = y[1] = y[4, :3] = 1
    values = torch.rand(5, 8, dtype=torch.float64)

    def forward(x: Tensor, y: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError(FULL)
        scored = y != -100
        return values[x[:, 0]][scored].sum() / scored.sum().clamp(min=1)

    rows = Rows()
    x = torch.arange(5)[:, None].expand(5, 8)
    result = evaluate(forward, torch.nn.Linear(1, 1), [(x, y)], rows)
    assert result.tokens == int((y != -100).sum())
    assert result.loss == pytest.approx(values[y != -100].mean().item(), rel=1e-12)
    assert [size for size, _ in rows.take_news()] == [2]
    assert rows.take_news() == []


def test_what_did_not_fit_is_free_before_the_smaller_batch_is_tried() -> None:
    held: list[Any] = []

    class Marker(Tensor):
        pass

    def forward(x: Tensor, y: Tensor) -> Tensor:
        import weakref

        activation = torch.zeros(3).as_subclass(Marker)
        if len(x) > 1:
            held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError(FULL)
        assert held[0]() is None
        return activation.sum() * 0

    x = torch.zeros(2, 4, dtype=torch.int64)
    assert evaluate(forward, torch.nn.Linear(1, 1), [(x, x)]).tokens == 8


def test_one_sequence_that_does_not_fit_stops_the_run_with_its_step_saved(local: LocalRuns) -> None:
    paths = local.create("eval-0", {"checkpoint.interval_steps": 0})
    with wrapped_forward(full_beyond(0)):
        assert local.attempt(paths) == 75
    (error,) = local.events(paths, "error")
    assert error["where"] == "validation"
    assert error["fix"] == {"memory.chunked_cross_entropy": True}, "what it can still do without; no micro-batch"
    assert list_checkpoints(paths)[0].step == 10


def test_sampling_never_ends_a_run(local: LocalRuns, whole: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError(FULL)
        yield

    monkeypatch.setattr("gpuworkbench.training.loop.generate", full)
    paths = local.create("sampling", {"sample.interval_steps": 20})
    assert local.attempt(paths) == 0
    assert local.events(paths, "sample") == []
    warnings = [event for event in local.events(paths, "warning") if event["code"] == "sample_out_of_memory"]
    assert [event["step"] for event in warnings] == [20, 40]
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


def test_a_snapshot_without_room_is_a_warning(
    local: LocalRuns, whole: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, calls = HostBuffers.copy, []

    def full_once(self: HostBuffers, *arguments: Any) -> Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return copy(self, *arguments)

    monkeypatch.setattr(HostBuffers, "copy", full_once)
    paths = local.create("snapshot", {"sample.interval_steps": 20})
    assert local.attempt(paths) == 0
    warning, works_again = local.events(paths, "warning")
    assert (warning["code"], warning["step"]) == ("checkpoint_failed", 7)
    assert (works_again["code"], works_again["step"]) == ("checkpoint_works_again", 10)
    assert "unsaved since the start" in warning["message"]
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


def test_the_last_step_without_room_for_a_snapshot_is_stopped_and_resumable(
    local: LocalRuns, whole: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ran out of the host's memory, and so does the snapshot: what was saved before stays."""
    paths = local.create("nothing-left", {"sample.interval_steps": 20})
    with wrapped_forward(full_in_backward(2 * 9 + 1)), monkeypatch.context() as patch:
        run = local.open(paths)
        copy = HostBuffers.copy

        def full(self: HostBuffers, *arguments: Any) -> Tensor:
            if run.progress.step == 9:
                raise MemoryError
            return copy(self, *arguments)

        patch.setattr(HostBuffers, "copy", full)
        outcome = attempt(run)
    assert (outcome.status, outcome.exit_code) == ("stopped", 75)
    assert outcome.reason.endswith("the last checkpoint is of step 7: a resume goes on from there")
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    assert final_tensors(paths, 40) == final_tensors(whole, 40)


# The fix


@pytest.fixture(scope="module")
def full(local: LocalRuns) -> RunPaths:
    """A run whose first attempt was full in step 5."""
    paths = local.create("to-be-fixed")
    with wrapped_forward(full_in_backward(9)):
        assert local.attempt(paths) == 75
    return paths


def test_the_fix_is_applied_and_recorded(local: LocalRuns, full: RunPaths, whole: RunPaths) -> None:
    with pytest.raises(ConfigError, match="make it another run"):
        local.change(full, {"train.micro_batch_size": 2, "train.grad_accum_steps": 4})
    resumed = resume(full, apply_fix=True, environ={})
    assert [str(change) for change in resumed.changed] == [
        "train.micro_batch_size: 4 -> 2",
        "train.grad_accum_steps: 2 -> 4",
    ]
    assert local.attempt(full) == 0
    changes = [(e["key"], e["old"], e["new"]) for e in local.events(full, "config_changed")]
    assert changes == [("train.micro_batch_size", 4, 2), ("train.grad_accum_steps", 2, 4)]
    steps = [event for event in local.events(full, "step") if event["attempt"] == 2]
    assert [event["step"] for event in steps] == list(range(5, 41))
    assert {event["grad_accum_steps"] for event in steps} == {4}
    assert [e["tokens_seen"] for e in steps] == [e["tokens_seen"] for e in local.events(whole, "step")[4:]]


def test_there_is_no_fix_after_an_attempt_that_was_not_full(local: LocalRuns, whole: RunPaths) -> None:
    with pytest.raises(ConfigError, match="did not run out of memory"):
        resume(whole, apply_fix=True, environ={})


def test_other_keys_than_the_fix_stay_refused(local: LocalRuns) -> None:
    paths = local.create("other-keys")
    with wrapped_forward(full_in_backward(1)):
        assert local.attempt(paths) == 75
    from gpuworkbench.config.loader import Override

    with pytest.raises(ConfigError, match=r"optimizer\.lr.*another run"):
        resume(paths, sets=[Override("optimizer.lr", 0.5, "--set")], apply_fix=True, environ={})
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size: 4 -> 1.*another run"):
        resume(paths, sets=[Override("train.micro_batch_size", 1, "--set")], apply_fix=True, environ={})


@pytest.mark.parametrize(
    ("fix", "message"),
    [
        ('{"train.micro_batch_size":"2"}', "is none that --apply-fix applies"),
        ('{"train.micro_batch_size":true}', "is none that --apply-fix applies"),
        ('{"data.source":"/etc/passwd"}', "is none that --apply-fix applies"),
        ('{"train.micro_batch_size":-5}', "--apply-fix"),
        ("{}", "no single change is known"),
    ],
)
def test_a_log_that_names_something_else_changes_nothing(local: LocalRuns, fix: str, message: str) -> None:
    paths = local.create(f"hostile-{abs(hash(fix))}")
    line = '{"v":1,"seq":0,"time_unix_s":1,"mono_s":1,"attempt":1,"step":0,"type":"error","kind":"cuda_oom","fix":%s}\n'
    paths.events.write_text(line % fix)
    with pytest.raises(ConfigError, match=message):
        resume(paths, apply_fix=True, environ={})
    assert [path.name for path in paths.root.glob("run*.toml")] == ["run.toml"]


# The biggest tensors


def failed(call: Callable[[], object]) -> torch.OutOfMemoryError:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        call()
    return caught.value


def test_every_kind_of_tensor_is_found_with_its_bytes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 256, bias=False), torch.nn.GELU(), torch.nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()

    def step() -> None:
        hidden = model(torch.ones(3000, 64))
        logits = hidden.float() + 1
        raise torch.OutOfMemoryError(f"{FULL} {logits.shape}")

    found = largest(model, optimizer, failed(step), most=100)
    by_name = {(tensor.kind, tensor.name): tensor for tensor in found}
    assert by_name["parameter", "0.weight"].num_bytes == by_name["gradient", "0.weight"].num_bytes == 64 * 256 * 4
    assert by_name["optimizer state", "exp_avg of 2.weight"].shape == (8, 256)
    gelu = [tensor for tensor in found if tensor.kind == "activation" and tensor.shape == (3000, 256)]
    assert sum(tensor.num_bytes for tensor in gelu) == 2 * 3000 * 256 * 4, "before and after the GELU, each once"
    assert by_name["in use", "logits in step"].num_bytes == 3000 * 8 * 4
    assert list(found) == sorted(found, key=lambda tensor: -tensor.num_bytes)


def test_tied_weights_and_views_count_once() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 32, bias=False), "b": torch.nn.Linear(32, 32, bias=False)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.SGD(model.parameters())

    def step() -> None:
        weight = model["a"].weight.t()[3:]
        raise torch.OutOfMemoryError(str(weight.shape))

    found = largest(model, optimizer, failed(step))
    assert [(tensor.kind, tensor.num_bytes) for tensor in found] == [("parameter", 32 * 32 * 4)]


def test_the_log_names_the_biggest(local: LocalRuns) -> None:
    paths = local.create("biggest")
    with wrapped_forward(full_in_backward(1)):
        assert local.attempt(paths) == 75
    (error,) = local.events(paths, "error")
    kinds = {tensor["kind"] for tensor in error["biggest"]}
    assert "activation" in kinds
    logits = [tensor for tensor in error["biggest"] if tensor["shape"] == [4 * 32, 320]]
    assert logits, error["biggest"]
    assert error["hint"].count("biggest: ") == 1


# Where a checkpoint is to be loaded


def full_while_loading(*_: Any) -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 15.57 GiB of which 0.20 GiB is "
        "free. Process 77 has 6.00 GiB memory in use. Of the allocated memory 4.00 GiB is allocated by PyTorch, and "
        "10.00 MiB is reserved by PyTorch but unallocated."
    )


def test_a_resume_without_room_blames_memory_not_the_checkpoint(
    local: LocalRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = local.trained("to-be-resumed", {"train.max_steps": 8})
    local.change(paths, {"train.max_steps": 12})
    with monkeypatch.context() as patch:
        patch.setattr("gpuworkbench.training.state.OptimizerState.load", full_while_loading)
        assert local.attempt(paths) == 4
    (error,) = local.events(paths, "error")
    assert error["message"].startswith("weights and optimizer do not fit the host's memory: CUDA out of memory")
    assert list_checkpoints(paths)[0].step == 8, "nothing was put aside"
    assert local.attempt(paths) == 0


def test_a_rollback_without_room_saves_nothing(local: LocalRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_at(forward: Forward, model: torch.nn.Module) -> Forward:
        calls = 0

        def broken(x: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += model.training
            return forward(x, y) * (float("nan") if calls == 2 * 9 + 1 else 1.0)

        return broken

    paths = local.create("no-way-back", {"train.on_nonfinite": "rollback", "eval.interval_steps": 0})
    with wrapped_forward(nan_at):
        run = local.open(paths)
        monkeypatch.setattr("gpuworkbench.training.state.OptimizerState.load", full_while_loading)
        outcome = attempt(run)
    assert (outcome.status, outcome.exit_code) == ("stopped", 75)
    assert outcome.reason.startswith("out of memory in going back to a checkpoint")
    assert [reference.step for reference in list_checkpoints(paths)] == [7]
