"""What training changes is in a checkpoint, or its absence has a reason: nothing a resume needs is forgotten."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gpuworkbench import registry
from gpuworkbench.hybrid.dynamics import model as dynamics_model
from gpuworkbench.hybrid.dynamics import replay as dynamics_replay
from gpuworkbench.parts import Part
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.loop import train, train_one_step
from gpuworkbench.training.setup import TrainingRun
from gpuworkbench.training.state import ScalerState
from tests.fixtures.local_run import LocalRuns, on_reaching
from tests.fixtures.reachable import Reach

# What changes while a run trains and is in no part, and why a resumed run does not miss it.
WITHOUT_A_PART = {
    r"run\.events\._(next_seq|last_step)": "read back from the log, and what its warnings name",
    r"run\.index\..*": "derived from the log",
    r"run\.heartbeat\._progress.*": "what the trainer says of itself now",
    r"run\.telemetry\._(window_started_s|memory_sampled_s)": "clocks; they feed the screen only",
    r"run\.checkpointer\.(last_saved_step|_buffers\._buffers\.len\(\))": "set by a restore, made by a save",
    r"run\.optimizer\.param_groups\[\d+\]\[lr\]": "a function of step, schedule and settings, set before each step",
    r"run\.optimizer\.state(\[#\d+\])?\.len\(\)": "the tensors in it are owned",
    r"run\..*\.(_arena|_chunks(\[\d+\])?)\.(_used|is_pinned|num_bytes|len\(\))": "host memory, made anew by an attempt",
    r"run\.strategies\[\d+\]\.(_num_bytes|_stretch)": "set when state leaves, and meant for its return alone",
    r"run\.controls\.obey.*\.<is_done>": "these tests' own",
    r"run\.strategies\[\d+\]\.(has_warned|phases.*)": "what the log was told of, and is to be told",
    r"run\.draws\..*": "made anew by each step",
    r"run\.parts\[hybrid_residuals\]\.(store\.kept|slots).*": "rows of its part by field; their tensors are owned",
    r"run\.hybrid\.residuals\.(store\.kept|slots).*": "the same",
}
# Tensors that no part owns.
COPIES = {
    r"run\.checkpointer\._buffers\._buffers\[#\d+\]": "host copies of owned tensors, for the next checkpoint",
    r"run\.strategies\[\d+\]\._arena\.memory": "the host's side of owned tensors",
    r"run\.model\.call_block\.pool\._chunks\[\d+\]\.memory": "activations of one step",
    r"run\.hybrid\.context\[\d+\]\[\d+\]\[\d\]": "the probe: read from the data, and never written to",
    r"run\.optimizer\.conveyor\.staging": "state on its way; it is back in the arena before a checkpoint",
    r"run\.draws\.tensors\[\w+\]": "the generators before a step, for one that runs out of memory",
}
HYBRID = {
    "hybrid.enabled": True,
    "hybrid.warmup_steps": 2,
    "hybrid.full_steps": 3,
    "hybrid.correct_steps": 1,
    "hybrid.exploration": 9,
    "hybrid.moment_damping": 0.9,
    "hybrid.probe_sequences": 2,
    "hybrid.ema_eval_decay": 0.9,
}
SETS = {"train.max_steps": 12, "eval.interval_steps": 5, "sample.interval_steps": 6, "checkpoint.interval_steps": 4}


MEMORY: dict[str, dict[str, Any]] = {
    "bf16": {"memory.weights": "bf16"},
    "stochastic": {"memory.weights": "bf16", "memory.stochastic_rounding": True},
    "packed": {"memory.weights": "bf16", "memory.packed_optimizer": True},
    "streamed": {"memory.optimizer_offload": "streamed"},
    "streamed-masters": {"memory.optimizer_offload": "streamed", "memory.weights": "bf16"},
    "in-backward": {
        "memory.optimizer_in_backward": True,
        "train.grad_accum_steps": 1,
        "train.grad_clip_norm": 0.0,
    },
}


def opened(local: LocalRuns, run_id: str, optimizer: str = "adamw", sets: dict[str, Any] | None = None) -> TrainingRun:
    return local.open(local.create(run_id, {**SETS, "optimizer.name": optimizer, **(sets or {})}))


def close(run: TrainingRun) -> None:
    run.checkpointer.wait()
    run.events.close()


def matches(path: str, patterns: dict[str, str]) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def in_a_part(run: TrainingRun) -> set[str]:
    """Paths of the plain values that parts name."""
    progress = {f"run.progress.{name}" for name in run.parts["progress"].state().values}
    overrides = {f"run.settings.overridden[{name}]" for name in run.parts["settings"].state().values}
    switches = {"run.precisions.switches"} if "memory_phase_precision" in run.parts else set()
    return {*progress, *overrides, *switches, "run.settings.overridden.len()", *in_the_hybrid_parts(run)}


def in_the_hybrid_parts(run: TrainingRun) -> set[str]:
    """Paths of what the hybrid trainer's parts name."""
    if "hybrid" not in run.parts:
        return set()
    values = run.parts["hybrid"].state().values
    found = {f"run.hybrid.controller.state.{name}" for name in values["controller"]}
    found |= {f"run.hybrid.trend.{name}" for name in values["trend"]}
    found |= {f"run.hybrid.trend.damped.{name}" for name in values["trend"]}
    found |= in_advice(run)
    found |= {f"run.hybrid.watch.{name}" for name in values["watch"] or ()}
    found |= {"run.hybrid.controller.averages", "run.hybrid.candidates.at"}  # by name
    for part, record in zip(predictor_parts(run), values["candidates"]["records"].values(), strict=True):
        found |= in_a_predictor(run, part, len(record["outcomes"]))
    lists = ("controller.state.jumps", "watch.losses")
    found |= {f"run.hybrid.{name}.len()" for name in lists}
    losses = (values["watch"] or {}).get("losses", [])
    found |= {f"run.hybrid.watch.losses[{number}]" for number in range(len(losses))}
    found |= {f"run.hybrid.controller.state.jumps[{number}]" for number in range(len(values["controller"]["jumps"]))}
    found |= {"run.hybrid.watch", "run.hybrid.owes_damping", "run.parts[hybrid_undo].step"}
    # The tensors in these are owned, and the phase is the controller's.
    found |= {"run.phases.current", "run.parts[hybrid_undo]._copies.len()", "run.average.average.len()"}
    return found


def predictor_parts(run: TrainingRun) -> list[str]:
    return [name for name in run.parts if name.partition("_")[0] == "predictor"]


def in_a_predictor(run: TrainingRun, part: str, outcomes: int) -> set[str]:
    """Paths of one predictor's state and of its record."""
    state = run.parts[part].state()
    at = f"run.hybrid.candidates.all[{predictor_parts(run).index(part)}]"
    found = {f"run.parts[{part}].numbers[{name}]" for name in state.values}
    found |= {f"run.parts[{part}].numbers.len()", f"run.parts[{part}].slots.len()"}
    found |= {f"run.parts[{part}].model.count"}  # "lessons" of a learned one
    found |= {f"run.parts[{part}].slots[{kind}].len()" for kind in {name.partition("/")[0] for name in state.tensors}}
    found |= {f"{at}.predictions", f"{at}.rests", f"{at}.acceptance.outcomes.len()"}
    return found | {f"{at}.acceptance.outcomes[{number}]" for number in range(outcomes)}


ADVICE = ("dynamics", "monitor", "residuals", "corrector", "bandit", "tuner")


def in_advice(run: TrainingRun) -> set[str]:
    """Paths of the plain values of the pieces that advise the hybrid trainer: their state names attributes."""
    found: set[str] = set()
    for name in ADVICE:
        part = run.parts.get(f"hybrid_{name}")
        if part is None:
            continue
        for root in (f"run.hybrid.{name}", f"run.parts[hybrid_{name}]"):
            for key, value in part.state().values.items():
                found |= paths_within(f"{root}.{key}", value)
                found |= paths_within(f"{root}.store.{key}", value)
    return found


def paths_within(path: str, value: object) -> set[str]:
    """Paths of a JSON value's leaves and of its lengths."""
    if isinstance(value, dict):
        inner = [paths_within(f"{path}[{key}]", child) for key, child in value.items()]
        return {f"{path}.len()"}.union(*inner)
    if isinstance(value, list | tuple):
        inner = [paths_within(f"{path}[{number}]", child) for number, child in enumerate(value)]
        return {f"{path}.len()"}.union(*inner)
    return {path}


def forgotten(run: TrainingRun, work: Callable[[], object]) -> list[str]:
    """Paths of everything that holds tensors or random state or that `work` changed, and that no part owns."""
    before = Reach(run)
    arrays_before = {path: array.copy() for path, array in before.arrays.items() if array.flags.writeable}
    work()
    after = Reach(run)
    owned = {tensor.data_ptr() for part in run.parts.values() for tensor in part.state().tensors.values()}
    found = [
        path for path, tensor in after.tensors.items() if tensor.data_ptr() not in owned and not matches(path, COPIES)
    ]
    found += [path for path, generator in after.generators.items() if generator is not torch.default_generator]
    found += [
        path
        for path, array in after.arrays.items()
        if array.flags.writeable and not np.array_equal(arrays_before.get(path), array)
    ]
    changed = {path for path, value in after.scalars.items() if before.scalars.get(path, "absent") != value}
    changed -= in_a_part(run)
    return found + sorted(path for path in changed if not matches(path, WITHOUT_A_PART))


def train_and_change(run: TrainingRun) -> None:
    train(run)
    run.settings.change("optimizer.lr_scale", 0.5)
    run.checkpointer.wait()


@pytest.mark.parametrize("optimizer", registry.OPTIMIZERS)
def test_no_part_of_the_state_is_forgotten(local: LocalRuns, optimizer: str) -> None:
    run = opened(local, f"complete-{optimizer}", optimizer)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    assert forgotten(run, lambda: train_and_change(run)) == []
    assert run.progress.step == 12
    assert random.getstate() == python_state, "Python's generator is in no part"
    assert str(np.random.get_state()) == str(numpy_state), "numpy's generator is in no part"
    close(run)


@pytest.mark.parametrize("predictor", registry.PREDICTORS)
def test_no_part_of_the_hybrid_trainer_is_forgotten(local: LocalRuns, predictor: str) -> None:
    sets = {**SETS, **HYBRID, "hybrid.predictor": predictor, "hybrid.dynamics": predictor == "learned"}
    run = local.open(local.create(f"hybrid-{predictor.replace('_', '-')}", sets))
    assert forgotten(run, lambda: train_and_change(run)) == []
    assert run.hybrid.parts()
    close(run)


def test_no_part_of_several_predictors_is_forgotten(local: LocalRuns) -> None:
    several = {"hybrid.bandit": True, "hybrid.bandit_predictors": "random,ema_trend,subspace,mlp,outer_nesterov,null"}
    sets = {**SETS, **HYBRID, **several, "hybrid.predictor": "line_jump", "train.max_steps": 60}
    run = local.open(local.create("hybrid-several", {**sets, "eval.interval_steps": 60}))
    assert forgotten(run, lambda: train_and_change(run)) == []
    assert len({event["predictor"] for event in local.events(run.paths, "prediction")}) == 7
    close(run)


def test_no_part_of_a_prediction_under_way_is_forgotten(local: LocalRuns) -> None:
    """Between two jumps there is a copy to undo the last one from."""
    sets = {**SETS, **HYBRID, "hybrid.predictor": "line_jump", "optimizer.lr": 1e-4, "train.max_steps": 20}
    run = local.open(local.create("hybrid-under-way", sets))

    def work() -> None:
        while not (run.phases.current == "predict" and run.parts["hybrid_undo"].state().tensors):
            assert train_one_step(run) is None

    assert forgotten(run, work) == []
    close(run)


@pytest.mark.parametrize("part", ["hybrid", "hybrid_undo", "predictor", "weight_average"])
def test_a_part_of_the_hybrid_trainer_that_is_left_out_is_missed(local: LocalRuns, part: str) -> None:
    sets = {**SETS, **HYBRID, "hybrid.predictor": "line_jump", "optimizer.lr": 1e-4, "train.max_steps": 20}
    run = local.open(local.create(f"hybrid-without-{part.replace('_', '-')}", sets))
    empty = ScalerState(run.scaler)

    def work() -> None:
        while not run.parts["hybrid_undo"].state().tensors:
            assert train_one_step(run) is None
        state = run.parts[part].state()
        names = {"predictor": "line_jump"} if part == "predictor" else {}
        run.parts[part] = empty
        if part == "hybrid":
            empty.state = lambda: Part(values={**state.values, "trend": {}})  # type: ignore[method-assign]
        else:
            empty.state = lambda: Part(values=names)  # type: ignore[method-assign]

    assert any(path.startswith(("run.hybrid", "run.average")) for path in forgotten(run, work))
    close(run)


EVERY_STRATEGY = {
    "model.n_layer": 2,
    "memory.chunked_cross_entropy": True,
    "memory.activation_checkpointing": "all",
    "memory.activation_offload": True,
    "memory.optimizer_offload": "predict_aware",
    "memory.precision_predict": "bf16",
    "hybrid.enabled": True,
    "hybrid.warmup_steps": 1000,  # it never predicts: the test changes phases
}


def test_strategies_keep_nothing_that_a_resume_needs(local: LocalRuns) -> None:
    run = local.open(local.create("strategies", {**SETS, **EVERY_STRATEGY}))
    on_reaching(run, 4, lambda: run.phases.change(4, "predict", "test", 3))
    on_reaching(run, 6, lambda: [strategy.virtual_step(3) for strategy in run.strategies])
    on_reaching(run, 8, lambda: run.phases.change(8, "warmup", "test"))  # where the controller is all the while
    assert forgotten(run, lambda: train_and_change(run)) == []
    close(run)


@pytest.mark.parametrize("memory", MEMORY)
def test_no_part_of_a_memory_strategys_state_is_forgotten(local: LocalRuns, memory: str) -> None:
    run = opened(local, f"complete-{memory}", sets=MEMORY[memory])
    assert forgotten(run, lambda: train_and_change(run)) == []
    assert run.progress.step == 12
    close(run)


def plant_tensor(run: TrainingRun) -> None:
    run.telemetry.average = torch.zeros(3)  # type: ignore[attr-defined]


def plant_generator(run: TrainingRun) -> None:
    run.train_batches.shuffle = torch.Generator()  # type: ignore[attr-defined]


def plant_numpy_generator_in_a_closure(run: TrainingRun) -> None:
    forward, noise = run.forward, np.random.default_rng(0)

    def noisy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return forward(x, y) * (1 + 1e-3 * noise.random())

    run.forward = noisy


def plant_counter(run: TrainingRun) -> None:
    batches = run.train_batches
    batches.served, at = 0, batches.at  # type: ignore[attr-defined]

    def counted(*where: object) -> tuple[torch.Tensor, torch.Tensor]:
        batches.served += 1  # type: ignore[attr-defined]
        return at(*where)  # type: ignore[arg-type]

    batches.at = counted  # type: ignore[method-assign]


def plant_history(run: TrainingRun) -> None:
    forward, history = run.forward, [0.0]

    def remembering(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = forward(x, y)
        history.append(float(loss.detach()))
        return loss

    run.forward = remembering


def plant_array(run: TrainingRun) -> None:
    forward, losses = run.forward, np.zeros(4)

    def summing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        losses[0] += 1
        return forward(x, y)

    run.forward = summing


@pytest.mark.parametrize(
    ("plant", "where"),
    [
        (plant_tensor, "run.telemetry.average"),
        (plant_generator, "run.train_batches.shuffle"),
        (plant_numpy_generator_in_a_closure, "run.forward.<noise>"),
        (plant_counter, "run.train_batches.served"),
        (plant_history, "run.forward.<history>.len()"),
        (plant_array, "run.forward.<losses>"),
    ],
)
def test_forgotten_state_is_found(local: LocalRuns, plant: Callable[[TrainingRun], None], where: str) -> None:
    run = opened(local, plant.__name__.replace("_", "-"))
    plant(run)
    assert where in forgotten(run, lambda: train_and_change(run))
    close(run)


@pytest.mark.parametrize("part", ["model", "optimizer", "progress", "settings"])
def test_a_part_that_is_left_out_is_missed(local: LocalRuns, part: str) -> None:
    run = opened(local, f"without-{part}")

    def work() -> None:
        train_and_change(run)
        run.parts[part] = ScalerState(run.scaler)  # what the part held belongs to nobody now

    assert any(path.startswith(f"run.{part}") for path in forgotten(run, work))
    close(run)


# Round trips


def assert_same(one: Part, other: Part) -> None:
    assert one.values == other.values
    assert set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        assert other.tensors[name].dtype == tensor.dtype, name
        assert torch.equal(other.tensors[name], tensor), name


def test_every_part_comes_back_into_a_fresh_run(local: LocalRuns) -> None:
    paths = local.create("round-trip", SETS)
    run = local.open(paths)
    train_and_change(run)
    run.checkpointer.save(13, best_step=None, wait=True)  # 12 is saved without the changed setting
    saved = {name: _copied(part.state()) for name, part in run.parts.items()}
    close(run)
    torch.manual_seed(99)

    fresh = local.open(local.create("fresh", SETS))
    for name in ("model", "rng", "progress", "settings"):
        with pytest.raises(AssertionError):
            assert_same(saved[name], fresh.parts[name].state())
    assert not fresh.parts["optimizer"].state().tensors
    close(fresh)

    again = local.open(paths)
    assert set(again.parts) == set(saved) == {"model", "optimizer", "rng", "scaler", "progress", "settings"}
    for name, part in again.parts.items():
        assert_same(saved[name], part.state())
    close(again)


def _copied(part: Part) -> Part:
    return Part({name: tensor.clone() for name, tensor in part.tensors.items()}, dict(part.values))


def test_the_loss_scale_comes_back() -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0, growth_interval=3)

    used, weight = scaler(), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for factor in (1.0, 1.0, float("inf"), 1.0, 1.0):
        used.scale((weight * factor).sum()).backward()
        used.step(optimizer)
        used.update()
        optimizer.zero_grad()
    fresh = scaler()
    ScalerState(fresh).load(ScalerState(used).state())
    assert fresh.get_scale() == used.get_scale() == 512.0
    assert fresh.state_dict() == used.state_dict()
    assert used.state_dict()["_growth_tracker"] == 2


def test_paths_are_those_of_the_run(local: LocalRuns) -> None:
    """The finder sees what is known to be there, so that an empty answer means something."""
    run = opened(local, "seen")
    seen = Reach(run)
    addresses = {tensor.data_ptr() for tensor in seen.tensors.values()}
    assert {parameter.data_ptr() for parameter in run.model.parameters()} <= addresses
    assert {"run.progress.step", "run.checkpointer.keep_last", "run.settings.overridden.len()"} <= set(seen.scalars)
    assert any(path.startswith("run.train_batches.tokens") for path in seen.arrays)
    assert isinstance(run.paths, RunPaths)
    close(run)


def test_no_part_of_the_advice_is_forgotten(local: LocalRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """All judges on, beside a predictor that makes shadow proposals, with a dynamics model that learns every tick."""
    monkeypatch.setattr(dynamics_model, "update_interval", lambda step_flops: 1)
    monkeypatch.setattr(dynamics_model, "WARM_SEQUENCES", 1)
    monkeypatch.setattr(dynamics_replay, "BURN_IN", 2)
    switches = dict.fromkeys(("hybrid.dynamics", "hybrid.corrector", "hybrid.bandit", "hybrid.auto_tuning"), True)
    sets = {
        **SETS,
        **HYBRID,
        **switches,
        "hybrid.predictor": "subspace",
        "train.max_steps": 45,
        "eval.interval_steps": 45,
    }
    run = local.open(local.create("advice", sets))
    assert forgotten(run, lambda: train_and_change(run)) == []
    assert run.parts["hybrid_dynamics"].state().values["model.updates"] > 0
    assert run.parts["hybrid_residuals"].state().values["seen"] > 0
    close(run)
