"""Whole runs with each way to store weights and optimizer state: killed and resumed, sampled, exported, told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpuworkbench.errors import ConfigError
from gpuworkbench.memory.optimizer_in_backward import OptimizerInBackward, refuse_scaler
from gpuworkbench.models.generate import generate
from gpuworkbench.tools.export import ExportRequest, export
from gpuworkbench.tools.sample import choose_checkpoint, load_config, load_model
from gpuworkbench.training.attempt import finish
from tests.fixtures.local_run import LocalRuns, final_tensors, killed

STEPS = 8
SETS: dict[str, Any] = {
    "train.max_steps": STEPS,
    "checkpoint.interval_steps": 3,
    "eval.interval_steps": 4,
    "sample.interval_steps": 5,
}
IN_BACKWARD = {
    "memory.optimizer_in_backward": True,
    "train.grad_accum_steps": 1,
    "train.micro_batch_size": 8,
    "train.grad_clip_norm": 0.0,
}
BF16 = {"memory.weights": "bf16"}
STORED: dict[str, dict[str, Any]] = {
    "bf16": BF16,
    "stochastic": {**BF16, "memory.stochastic_rounding": True},
    "packed": {**BF16, "memory.packed_optimizer": True},
    "streamed": {"memory.optimizer_offload": "streamed"},
    "streamed-masters": {**BF16, "memory.optimizer_offload": "streamed"},
    "in-backward": IN_BACKWARD,
    "packed-in-backward": {**BF16, "memory.packed_optimizer": True, **IN_BACKWARD},
}


@pytest.mark.parametrize("stored", STORED)
def test_a_killed_run_goes_on_bit_for_bit(local: LocalRuns, stored: str) -> None:
    """Killed at step 5: it resumes from step 3 and ends where the straight run does."""
    sets = {**SETS, **STORED[stored]}
    straight = local.trained(f"{stored}-straight", sets)
    paths = local.create(f"{stored}-killed", sets)
    killed(local.open(paths), 5)
    assert local.attempt(paths) == 0
    assert final_tensors(paths, STEPS) == final_tensors(straight, STEPS)
    assert local.losses(paths) == local.losses(straight)
    losses = local.losses(straight)
    assert losses[STEPS] < losses[1]


HYBRID = {
    "hybrid.enabled": True,
    "hybrid.predictor": "line_jump",
    "hybrid.warmup_steps": 2,
    "hybrid.full_steps": 2,
    "hybrid.correct_steps": 1,
    "hybrid.max_predict_steps": 2,
    "hybrid.exploration": 9,
    "hybrid.moment_damping": 0.9,
    "hybrid.probe_sequences": 2,
}


@pytest.mark.parametrize("stored", ["stochastic", "packed", "streamed", "streamed-masters", "packed-in-backward"])
def test_predicted_jumps_and_a_kill_leave_it_bit_for_bit(local: LocalRuns, stored: str) -> None:
    sets = {**SETS, **HYBRID, **STORED[stored], "train.max_steps": 14, "optimizer.lr": 1e-3}
    straight = local.trained(f"{stored}-jumps", sets)
    jumps = local.events(straight, "prediction")
    assert jumps
    paths = local.create(f"{stored}-jumps-killed", sets)
    killed(local.open(paths), 8)
    assert local.attempt(paths) == 0
    assert final_tensors(paths, 14) == final_tensors(straight, 14)
    assert local.losses(paths) == local.losses(straight)


@pytest.mark.parametrize("stored", ["fp32", "packed"])
def test_an_update_in_backward_is_the_ordinary_one_bit_for_bit(local: LocalRuns, stored: str) -> None:
    sets = {**SETS, **STORED.get(stored, {}), **IN_BACKWARD}
    there = local.trained(f"{stored}-there", sets)
    after = local.trained(f"{stored}-after", {**sets, "memory.optimizer_in_backward": False})
    assert final_tensors(there, STEPS) == final_tensors(after, STEPS)
    assert local.losses(there) == local.losses(after)
    norms = [[event["grad_norm"] for event in local.events(paths, "step")] for paths in (there, after)]
    assert norms[0] == pytest.approx(norms[1], rel=2**-8 if stored == "packed" else 1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "lion", "adafactor", "sgd"])
def test_any_optimizer_can_update_in_backward(local: LocalRuns, optimizer: str) -> None:
    sets = {"train.max_steps": 3, **IN_BACKWARD, "optimizer.name": optimizer}
    there = local.trained(f"{optimizer}-there", sets)
    after = local.trained(f"{optimizer}-after", {**sets, "memory.optimizer_in_backward": False})
    assert final_tensors(there, 3) == final_tensors(after, 3)


def test_gradients_are_gone_when_backward_ends(local: LocalRuns) -> None:
    run = local.open(local.create("gone", {**SETS, **IN_BACKWARD}))
    most = 0

    def count(parameter: torch.Tensor) -> None:
        nonlocal most
        most = max(most, sum(p.grad is not None for p in run.model.parameters()))

    for parameter in run.model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    batch = next(iter(run.train_batches.of_step(0, run.curriculum.place(0))))
    run.forward(batch.x, batch.y).backward()
    assert most == 0  # the hook before has used each up
    run.events.close()


def test_memory_that_is_full_midway_leaves_the_last_checkpoint(local: LocalRuns) -> None:
    """Half of step 5's updates are done: step 3 is what there is, and a resume from it is the straight run."""
    sets = {**SETS, **IN_BACKWARD, "eval.interval_steps": 0}
    straight = local.trained("midway-straight", sets)
    paths = local.create("midway", sets)
    run = local.open(paths)

    def fail(parameter: torch.Tensor) -> None:
        if run.progress.step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    run.model.h[0].attn.c_attn.weight.register_post_accumulate_grad_hook(fail)
    outcome = finish(run)
    run.events.close()
    assert outcome.status == "stopped"
    assert run.checkpointer.last_saved_step == 3
    assert local.attempt(paths) == 0
    assert final_tensors(paths, STEPS) == final_tensors(straight, STEPS)
    assert local.losses(paths) == local.losses(straight)


def test_streamed_state_trains_as_resident_state_does(local: LocalRuns) -> None:
    """Resident and streamed fp32 state: the same run but for how the update's kernels round."""
    sets = {**SETS, "train.max_steps": 5}
    resident, streamed = local.trained("resident", sets), local.trained("not-resident", {**sets, **STORED["streamed"]})
    for step, loss in local.losses(resident).items():
        assert local.losses(streamed)[step] == pytest.approx(loss, rel=1e-5)


def test_each_step_tells_its_transfers(local: LocalRuns) -> None:
    paths = local.trained("told", {**SETS, "train.max_steps": 2, **STORED["streamed-masters"]})
    arena = 12 * sum(-(-tensor.numel() // 64) * 64 for tensor in weights_of(paths.checkpoint(2)).values())
    events = local.events(paths, "offload")
    assert [(event["step"], event["op"]) for event in events[:4]] == [
        (1, "restore"),
        (1, "offload"),
        (2, "restore"),
        (2, "offload"),
    ]
    for event in events[:4]:
        assert (event["num_bytes"], event["target"], event["phase"]) == (arena, "optimizer state", "full")
        assert event["freed_bytes"] == (arena if event["op"] == "offload" else 0)
        assert event["duration_s"] > 0
        assert event["overlapped_s"] == 0


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize("stored", ["packed", "streamed-masters"])
def test_checkpoints_are_sampled_and_exported(local: LocalRuns, stored: str, tmp_path: Path) -> None:
    """Both take the bf16 weights: what the run computed, validated and sampled with. Masters and residuals stay."""
    paths = local.trained(f"{stored}-exported", {**SETS, "train.max_steps": 3, **STORED[stored]})
    model = load_model(load_config(paths), choose_checkpoint(paths, None))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(list(generate(model, [84, 104], 4, temperature=0.0))) == 4
    saved = weights_of(paths.checkpoint(3))
    for dtype in ("fp32", "bf16"):
        export(ExportRequest(run=str(paths.root), to=str(tmp_path / dtype), dtype=dtype))
        found = load_file(tmp_path / dtype / "model.safetensors")
        name = next(name for name in found if name.endswith("h.0.mlp.c_fc.weight"))
        assert torch.equal(found[name].float(), saved["h.0.mlp.c_fc.weight"].t().float())
    behind = load_file(paths.checkpoint(3) / "optimizer.safetensors")
    assert any(name.startswith(("master/", "residual/")) for name in behind)


def test_published_weights_reach_the_masters_in_full(local: LocalRuns, tmp_path: Path) -> None:
    """An fp32 export, taken up with each format: exactly, or to 24 bits."""
    source = local.trained("source", {**SETS, "train.max_steps": 2})
    export(ExportRequest(run=str(source.root), to=str(tmp_path / "folder")))
    expected = weights_of(source.checkpoint(2))
    for stored in ("packed", "streamed-masters"):
        sets = {**SETS, **STORED[stored], "train.init_from": str(tmp_path / "folder"), "model.vocab_size": 0}
        run = local.open(local.create(f"from-{stored}", sets))
        for name, p in run.model.named_parameters():
            rows = run.config.model.vocab_size if name == "wte.weight" else len(p)
            value, wanted = run.weights.read(p)[:rows], expected[name][:rows]
            error = 2.0**-16 if stored == "packed" else 0.0
            assert ((value - wanted).abs() <= error * wanted.abs() + 1e-38).all(), name
        run.checkpointer.wait()
        run.events.close()


# What cannot work is refused in a line


def refused(local: LocalRuns, **sets: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        local.create("refused", {key.replace("__", "."): value for key, value in sets.items()})
    line = caught.value.line()
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("sets", "what"),
    [
        ({"memory.stochastic_rounding": True}, "is for bf16 weights"),
        ({"memory.packed_optimizer": True}, "set memory.weights = 'bf16'"),
        ({**BF16, "memory.precision": "fp16"}, "cannot be computed with bf16 weights"),
        ({**BF16, "memory.precision_predict": "fp32"}, "memory.precision_predict"),
        ({**BF16, "memory.packed_optimizer": True, "optimizer.name": "lion"}, "set optimizer.name = 'adamw'"),
        ({"memory.optimizer_offload": "streamed", "optimizer.name": "sgd"}, "'streamed' is AdamW's"),
        ({**BF16, "memory.packed_optimizer": True, "memory.stochastic_rounding": True}, "leave one of them out"),
        ({**STORED["packed"], "memory.optimizer_offload": "streamed"}, "does not go with memory.packed_optimizer"),
        ({**IN_BACKWARD, "memory.optimizer_offload": "streamed"}, "does not go with memory.optimizer_in_backward"),
        ({**IN_BACKWARD, "train.grad_accum_steps": 2}, "set train.grad_accum_steps = 1"),
        ({**IN_BACKWARD, "train.grad_clip_norm": 1.0}, "set train.grad_clip_norm = 0"),
        ({**IN_BACKWARD, "memory.precision": "fp16"}, "loss scaler"),
        ({**IN_BACKWARD, "memory.precision_warmup": "fp16"}, "memory.precision_warmup"),
    ],
)
def test_what_does_not_go_together(local: LocalRuns, sets: dict[str, Any], what: str) -> None:
    assert what in refused(local, **sets)


def test_a_scaler_that_only_the_card_asks_for_is_refused_too() -> None:
    refuse_scaler(needs_scaler=True, strategies=[])
    refuse_scaler(needs_scaler=False, strategies=[OptimizerInBackward()])
    with pytest.raises(ConfigError, match="loss scaler"):
        refuse_scaler(needs_scaler=True, strategies=[OptimizerInBackward()])


def test_bf16_weights_decide_the_precision(local: LocalRuns) -> None:
    paths = local.create("decided", {**SETS, **BF16})
    config = load_config(paths)
    assert (config.memory.weights, config.memory.precision) == ("bf16", "bf16")


def test_another_storage_does_not_take_up_a_checkpoint(local: LocalRuns) -> None:
    """The launcher says that it is another run; should a checkpoint get that far, its tensors are refused by name."""
    paths = local.trained("stays-packed", {**SETS, "train.max_steps": 2, **STORED["packed"]})
    with pytest.raises(ConfigError, match="would make it another run"):
        local.change(paths, {"train.max_steps": 3, "memory.packed_optimizer": False})
