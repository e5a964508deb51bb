"""A trial computes what a run computes, bit for bit; what diverges is a result."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import msgspec
import pytest
import torch

from gpuworkbench.config.schema import RunConfig, ScheduleConfig
from gpuworkbench.data import PreparedData, load_same_tokens
from gpuworkbench.errors import ConfigError, ExitCode
from gpuworkbench.plan.lr_search import SearchPlan, has_diverged, range_test_lrs
from gpuworkbench.plan.lr_search_files import open_search
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tools import bench_lr
from gpuworkbench.training import trial as trial_module
from gpuworkbench.training.attempt import load_run_config
from gpuworkbench.training.trial import measured_trial, range_trial, train_trial, with_rate
from tests.fixtures.hf_folders import change_tensors, save_gpt2
from tests.fixtures.local_run import LocalRuns

STEPS = 12
SETS = {"train.max_steps": STEPS, "eval.interval_steps": STEPS}


def base(local: LocalRuns, run_id: str, **sets: object) -> tuple[RunPaths, RunConfig, PreparedData]:
    """A run that is not trained: its configuration and data."""
    paths = local.create(run_id, {**SETS, **sets})
    config, _ = load_run_config(paths)
    return paths, config, load_same_tokens(config)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trials_losses_are_a_runs_bit_for_bit(local: LocalRuns, optimizer: str) -> None:
    sets = {**SETS, "optimizer.name": optimizer}
    run = local.trained(f"run-{optimizer}", {**sets, "optimizer.lr": 3e-3, "train.seed": 5})
    _, config, data = base(local, f"trial-{optimizer}", **{"optimizer.name": optimizer})
    for _ in range(2):  # what came before in the process changes nothing
        result = train_trial(with_rate(config, 3e-3, 5), data)
        assert result.losses == list(local.losses(run).values())
        assert result.val_loss == local.events(run, "eval")[-1]["loss"]
        assert result.diverged == ""


def test_a_trial_starts_from_the_weights_that_a_run_starts_from(local: LocalRuns, tmp_path: Path) -> None:
    """Published weights are in no seed: memory that nobody filled would be trained instead."""
    folder = save_gpt2(tmp_path / "published")
    sets = {"train.init_from": str(folder), "optimizer.lr": 1e-3, "train.seed": 3}
    run = local.trained("run-pretrained", {**SETS, **sets})
    _, config, data = base(local, "trial-pretrained", **sets)
    result = train_trial(config, data)
    assert result.losses == list(local.losses(run).values())
    assert result.val_loss == local.events(run, "eval")[-1]["loss"]
    flat = range_trial(config, data, [1e-3, 2e-3], has_diverged)
    assert flat.losses[0] == result.losses[0]
    change_tensors(folder, lambda tensors: {name: tensor + 1e-3 for name, tensor in tensors.items()})
    with pytest.raises(ConfigError, match="changed since"):
        train_trial(config, data)


def test_nothing_of_a_trial_stays(local: LocalRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths, config, data = base(local, "clean")
    train_trial(config, data)
    assert list(tmp_path.iterdir()) == []
    assert not paths.events.exists()


def test_another_seed_is_another_start(local: LocalRuns) -> None:
    _, config, data = base(local, "seeds")
    first, second = (train_trial(with_rate(config, 1e-3, seed), data).losses for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("lr", "sets", "words"),
    [
        (1e30, {}, "at step"),
        (3.0, {"optimizer.name": "sgd", "train.grad_clip_norm": 0.0, "schedule.name": "constant"}, ""),
    ],
)
def test_divergence_is_a_result(local: LocalRuns, lr: float, sets: dict[str, object], words: str) -> None:
    _, config, data = base(local, f"diverges-{len(sets)}", **sets)
    seen = []
    result = train_trial(with_rate(config, lr, 1), data, lambda losses: seen.append(len(losses)))
    assert result.diverged
    assert words in result.diverged
    assert seen == list(range(1, len(result.losses) + 1))


def test_a_range_test_takes_one_step_at_each_rate(local: LocalRuns) -> None:
    """Equal to training at the first rate with the live factor that raises it."""
    _, config, data = base(local, "range")
    lrs = [1e-4 * 2**index for index in range(8)]
    result = range_trial(config, data, lrs, lambda losses: False)
    assert len(result.losses) == len(lrs)
    flat = msgspec.structs.replace(
        with_rate(config, lrs[0], config.train.seed), schedule=ScheduleConfig(name="constant")
    )
    constant = train_trial(flat, data).losses
    assert result.losses[:2] == constant[:2]  # the first step is at the first rate
    assert all(a != b for a, b in zip(result.losses[2:], constant[2:], strict=False))
    again = range_trial(config, data, lrs, lambda losses: len(losses) == 3)
    assert again.losses == result.losses[:3]


def test_a_range_test_ends_where_the_loss_explodes(local: LocalRuns) -> None:
    _, config, data = base(local, "explodes")
    plan = SearchPlan(preset="p", label="p", steps=40, full_steps=40, seeds=(1,), lr_range=(1e-3, 1e6), range_steps=40)
    result = range_trial(config, data, range_test_lrs(plan), has_diverged)
    assert 3 < len(result.losses) < 40
    assert has_diverged(result.losses)
    assert result.losses[0] is not None
    assert math.isfinite(result.losses[0])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), MemoryError()]
)
def test_a_trial_that_does_not_fit_ends_the_search_in_a_line(
    local: LocalRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def full(*_: object) -> None:
        raise error

    _, config, _ = base(local, f"full-{type(error).__name__}")
    plan = SearchPlan(
        preset="p",
        label="p",
        steps=STEPS,
        full_steps=STEPS,
        seeds=(1,),
        lr_range=(1e-3, 1.0),
        range_steps=5,
        grid=(1e-3,),
        adapts=False,
    )
    open_search(tmp_path, plan, config)
    monkeypatch.setattr(trial_module, "train_trial", full)
    assert bench_lr.main(str(tmp_path)) == ExitCode.DOES_NOT_FIT
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "a trial does not fit the host's memory: " in said


def test_a_search_in_this_process_does_what_is_missing(local: LocalRuns, tmp_path: Path) -> None:
    _, config, data = base(local, "searched")
    plan = SearchPlan(
        preset="p",
        label="p",
        steps=STEPS,
        full_steps=STEPS,
        seeds=(1, 2),
        lr_range=(1e-3, 1.0),
        range_steps=5,
        grid=(1e-3, 1e30),
        adapts=False,
    )
    files = open_search(tmp_path, plan, config)
    assert bench_lr.main(str(tmp_path)) == 0
    done = {(each.lr, each.seed): each for each in files.read_trials()}
    assert set(done) == {(lr, seed) for lr in (1e-3, 1e30) for seed in (1, 2)}
    assert list(done[1e-3, 2].losses) == train_trial(with_rate(config, 1e-3, 2), data).losses
    assert done[1e30, 1].diverged


def test_a_measured_trial_is_the_same_training_with_its_work(local: LocalRuns) -> None:
    _, config, data = base(local, "measured", **{"hybrid.ema_eval_decay": 0.5})
    plain = train_trial(config, data)
    found = measured_trial(config, data)
    assert (found.losses, found.val_loss, found.diverged) == (plain.losses, plain.val_loss, "")
    assert found.cost_steps == STEPS
    assert found.average_val_loss is not None
    assert found.average_val_loss != found.val_loss
    assert found.cpu_seconds > 0
    assert 0 < found.seconds < plain.seconds * 10


def test_probes_are_work(local: LocalRuns) -> None:
    """Each jump of an averaging predictor probes twice: 2 x 5 sequences, against 8 sequences x 3 of a step."""
    sets = {"hybrid.enabled": True, "hybrid.predictor": "outer_nesterov", "hybrid.probe_sequences": 5}
    sets |= {"hybrid.warmup_steps": 2, "hybrid.full_steps": 3, "hybrid.correct_steps": 1}
    _, config, data = base(local, "probes", **sets)
    found = measured_trial(config, data, reserved_tokens=config.reserved_tokens)
    jumps = found.counts["accepted"] + found.counts["rejected"]
    assert jumps >= 2
    assert found.cost_steps == pytest.approx(STEPS + jumps * 10 / (8 * 3))
    assert found.counts["virtual_steps"] == 3 * found.counts["accepted"]
    assert found.losses == train_trial(config, data).losses, "the tokens reserved are those of the run itself"


def test_all_arms_read_the_same_data_in_the_same_order(local: LocalRuns) -> None:
    """Up to the first jump a hybrid trial is the plain one: the plain one leaves the probe's tokens out too."""
    sets = {"hybrid.predictor": "outer_nesterov", "hybrid.warmup_steps": 2, "hybrid.full_steps": 6}
    _, config, data = base(local, "same-data", **sets)
    hybrid = msgspec.structs.replace(config, hybrid=msgspec.structs.replace(config.hybrid, enabled=True))
    assert hybrid.reserved_tokens > 0
    plain, jumping = (measured_trial(one, data, reserved_tokens=hybrid.reserved_tokens) for one in (config, hybrid))
    assert plain.losses[:8] == jumping.losses[:8]
    assert plain.losses[8:] != jumping.losses[8:]


def test_a_measured_trial_that_diverges_says_how(local: LocalRuns) -> None:
    _, config, data = base(local, "measured-diverges")
    found = measured_trial(with_rate(config, 1e30, 1), data)
    assert "at step" in found.diverged
    assert found.val_loss is None
