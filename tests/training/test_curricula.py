"""Runs whose steps grow: against an independent loop, killed and resumed at every border, and what they report."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from gpuworkbench.config.loader import Override
from gpuworkbench.events.codec import decode_lines
from gpuworkbench.events.schema import CurriculumStage
from gpuworkbench.launch.fork import fork
from gpuworkbench.launch.resume import run_config
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.state.lines import notable_lines
from gpuworkbench.state.reducer import Reducer
from gpuworkbench.training.attempt import finish
from gpuworkbench.training.batches import TrainBatches
from gpuworkbench.training.loop import train_one_step
from gpuworkbench.training.lr_schedule import lr_multiplier
from gpuworkbench.training.setup import allow_recompiles
from tests.fixtures.curricula import stepped
from tests.fixtures.local_run import Forward, LocalRuns, final_tensors, killed, wrapped_forward

SEQ_LEN = {"schedule.seq_len_start": 8, "schedule.seq_len_warmup_tokens": 1200}
BATCH = {"schedule.batch_start_sequences": 2, "schedule.batch_warmup_tokens": 1500, "schedule.batch_lr_scaling": "sqrt"}
BOTH = {**SEQ_LEN, **BATCH, "schedule.batch_warmup_tokens": 500, "schedule.seq_len_warmup_tokens": 500}
CURRICULA = {"seq_len": SEQ_LEN, "batch": BATCH, "both": BOTH}
RECORDED = {1: 5.539927, 9: 3.438905, 17: 2.497490, 25: 2.094572, 33: 1.863133}  # before there were curricula


@pytest.fixture(scope="module", params=CURRICULA)
def whole(request: pytest.FixtureRequest, local: LocalRuns) -> tuple[dict[str, Any], RunPaths]:
    """A curriculum and a run of 40 steps with it; the full size is reached."""
    sets = CURRICULA[request.param]
    return sets, local.trained(f"whole-{request.param}", sets)


def borders(local: LocalRuns, paths: RunPaths) -> list[int]:
    """Steps after which another stage began."""
    return [event["step"] for event in local.events(paths, "curriculum_stage")][1:]


def test_without_a_curriculum_runs_are_what_they_were(local: LocalRuns) -> None:
    """Losses recorded before; other processors differ in the last digits, another order or size in the first."""
    paths = local.trained("off")
    losses = local.losses(paths)
    assert {step: losses[step] for step in RECORDED} == pytest.approx(RECORDED, rel=2e-4)
    assert local.events(paths, "curriculum_stage") == []
    assert local.events(paths, "run_started")[0]["max_tokens"] is None
    assert {(event["seq_len"], event["effective_batch_size"]) for event in local.events(paths, "step")} == {(32, 8)}


@pytest.mark.parametrize("name", CURRICULA)
def test_steps_equal_those_of_an_independent_loop(local: LocalRuns, name: str) -> None:
    """The papers' sizes step by step, windows cut by hand, one batch without accumulation, torch's own AdamW."""
    sets = {**CURRICULA[name], "model.dropout": 0.0, "eval.interval_steps": 0, "train.grad_clip_norm": 0.0}
    run = local.open(local.create(f"reference-{name}", sets))
    run.model.train()
    model = copy.deepcopy(run.model)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    tokens, order = run.data.tokens("train"), run.train_batches.order
    sizes = list(zip(stepped(run.config), range(41), strict=False))
    last_full = sizes[39][0][0] // 256 + 1
    expected, windows_read, part = [], 0, 0
    for (seen, sequences, seq_len), _ in sizes[:40]:
        starts = order.starts_at(windows_read, sequences) + part * seq_len
        ids = torch.tensor([tokens.slice(start, seq_len + 1).tolist() for start in starts.tolist()])
        share = (sequences / 8) ** 0.5 if "batch" in name or name == "both" else 1.0
        for group in reference.param_groups:
            group["lr"] = 0.01 * share * lr_multiplier(seen // 256 + 1, run.config.schedule, last_full)
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        reference.step()
        reference.zero_grad()
        expected.append((float(loss.detach()), seen + sequences * seq_len, sequences, seq_len))
        part = (part + 1) % (32 // seq_len)
        windows_read += sequences if part == 0 else 0
    for _ in range(40):
        assert train_one_step(run) is None
    run.events.close()
    fields = ("loss", "tokens_seen", "effective_batch_size", "seq_len")
    found = [tuple(event[name] for name in fields) for event in local.events(run.paths, "step")]
    assert found == [pytest.approx(step, rel=2e-4) for step in expected]
    assert found[-1][2:] == (8, 32), "the full size was reached"


def test_what_a_run_reports(local: LocalRuns, whole: tuple[dict[str, Any], RunPaths]) -> None:
    _, paths = whole
    steps, events = local.events(paths, "step"), local.events(paths)
    for before, event in zip([{"tokens_seen": 0}, *steps], steps, strict=False):
        tokens = event["effective_batch_size"] * event["seq_len"]
        assert event["tokens_seen"] - before["tokens_seen"] == tokens
        assert event["tokens_per_s"] == pytest.approx(tokens / event["step_time_s"])
        assert event["effective_batch_size"] // event["grad_accum_steps"] <= 4
        assert event["micro_batch_index"] == event["grad_accum_steps"]
    assert events[0]["max_tokens"] == steps[-1]["tokens_seen"]
    stages = local.events(paths, "curriculum_stage")
    assert stages[0]["step"] == 0
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        first = steps[stage["step"]]
        sizes = ("seq_len", "effective_batch_size", "grad_accum_steps")
        assert [stage[name] for name in sizes] == [first[name] for name in sizes]
        assert stage["until_tokens"] == (following["tokens_seen"] if following else None)
        if stage["step"]:
            place = [(event["type"], event["step"]) for event in events]
            assert place.index(("step", stage["step"])) < place.index(("curriculum_stage", stage["step"]))
    assert {event["tokens"] for event in local.events(paths, "eval")} == {256}, "validation is at full length"
    assert len(local.events(paths, "eval")) == 4


def test_people_read_each_stage_once(local: LocalRuns, whole: tuple[dict[str, Any], RunPaths]) -> None:
    _, paths = whole
    reducer = Reducer()
    reducer.apply(decode_lines(paths.events.read_bytes()))
    state = reducer.snapshot()
    stages = [event for event in state.notable() if isinstance(event, CurriculumStage)]
    lines = [line.text for stage in stages for line in notable_lines(stage, state)]
    assert len(lines) == len(borders(local, paths)) + 1
    assert " 0/40  curriculum: " in lines[0]
    assert lines[-1].endswith("curriculum: 8 sequences of 32 tokens a step, to the end")


def test_a_kill_near_any_border_resumes_identically(local: LocalRuns, whole: tuple[dict[str, Any], RunPaths]) -> None:
    """The checkpoint lies before, on or after a border; before it, often between two parts of a window."""
    sets, paths = whole
    wanted, tensors = local.losses(paths), final_tensors(paths, 40)
    for number, border in enumerate(borders(local, paths)):
        saved = border + number % 3 - 1
        keys = {**sets, "checkpoint.interval_steps": saved, "checkpoint.keep_best": False}
        broken = local.create(f"{paths.run_id}-{border}", keys)
        killed(local.open(broken), min(saved + 2, 39))
        assert local.attempt(broken) == 0
        assert local.losses(broken) == wanted
        assert final_tensors(broken, 40) == tensors
        (resumed,) = local.events(broken, "run_resumed")
        assert resumed["from_step"] == saved
        first = next(e for e in local.events(broken, "curriculum_stage") if e["attempt"] == 2)
        following = next(e for e in local.events(paths, "step") if e["step"] == resumed["from_step"] + 1)
        assert first["seq_len"] == following["seq_len"]
        assert first["effective_batch_size"] == following["effective_batch_size"]


def test_a_longer_run_has_the_same_stages(local: LocalRuns) -> None:
    """`--steps` moves the end, not the curriculum; with a constant rate it is the same run, only longer."""
    sets = {**BOTH, "schedule.name": "constant", "schedule.warmup_steps": 0}
    whole = local.trained("constant", sets)
    paths = local.trained("shorter", {**sets, "train.max_steps": 12})
    local.change(paths, {"train.max_steps": 40})
    assert local.attempt(paths) == 0
    assert local.losses(paths) == local.losses(whole)
    resumed = local.events(paths, "run_resumed")[0]
    assert resumed["max_tokens"] == local.events(whole, "run_started")[0]["max_tokens"]


def test_epochs_with_a_curriculum(local: LocalRuns) -> None:
    paths = local.create("epochs", {**BOTH, "train.max_epochs": 0.1, "train.max_steps": 10**6})
    run = local.open(paths)
    run.events.close()
    steps = run_config(paths).train.max_steps
    assert steps is not None
    reached = run.curriculum.tokens_after(0, steps)
    assert reached >= 0.1 * run.data.n_train_tokens > run.curriculum.tokens_after(0, steps - 1)
    assert steps > math.ceil(0.1 * run.data.n_train_tokens / 256), "small steps are more steps"


def test_a_rollback_within_a_group_of_windows_reads_nothing_twice(
    local: LocalRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 is bad and the checkpoint is of step 5, both in the midst of windows that are read in four parts."""
    read: list[tuple[int, int, int]] = []
    at = TrainBatches.at

    def noted(self: TrainBatches, position: int, place: Any) -> Any:
        rows, seq_len = place.stage.micro_batch_size, place.stage.seq_len
        starts = self.order.starts_at(position, rows) + place.part * seq_len
        read.extend((int(start), seq_len, run.progress.step) for start in starts)
        return at(self, position, place)

    def bad_once(forward: Forward, model: torch.nn.Module) -> Forward:
        def wrapped(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            is_bad = model.training and run.progress.step == 5 and run.progress.rollbacks == 0
            return forward(x, y) * (math.nan if is_bad else 1.0)

        return wrapped

    sets = {**SEQ_LEN, "train.on_nonfinite": "rollback", "checkpoint.interval_steps": 5, "eval.interval_steps": 0}
    paths = local.create("rollback", {**sets, "train.max_steps": 20})
    with wrapped_forward(bad_once):
        run = local.open(paths)
        monkeypatch.setattr(TrainBatches, "at", noted)
        assert finish(run).status == "completed"
    run.events.close()
    assert run.progress.rollbacks == 1
    assert run.progress.skipped_sequences == 8, "the group of windows that the bad step belongs to"
    assert run.progress.tokens_seen == run.curriculum.tokens_after(0, 20)
    targets = [start + i for start, seq_len, _ in read for i in range(seq_len)]
    assert len(targets) > 20 * 8 * 8
    assert len(set(targets)) == len(targets)


FORKS = {
    "to full size": ({"schedule.seq_len_start": 0, "schedule.seq_len_warmup_tokens": 0}, 8),
    "to other lengths": ({"schedule.seq_len_start": 16}, 8),
    "to other batches": (BATCH, 8),
    "to other micro-batches of as many": ({"train.micro_batch_size": 2, "train.grad_accum_steps": 4}, 0),
}


@pytest.mark.parametrize("case", FORKS)
def test_a_fork_reads_nothing_that_its_parent_has_read(
    local: LocalRuns, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The parent ends after one of the four parts that its second group of windows is read in."""
    changes, skipped = FORKS[case]
    read: list[int] = []
    at = TrainBatches.at

    def noted(self: TrainBatches, position: int, place: Any) -> Any:
        starts = self.order.starts_at(position, place.stage.micro_batch_size) + place.part * place.stage.seq_len
        read.extend(int(start) + i for start in starts for i in range(place.stage.seq_len))
        return at(self, position, place)

    monkeypatch.setattr(TrainBatches, "at", noted)
    name = case.replace(" ", "-")
    parent = local.trained(f"parent-{name}", {**SEQ_LEN, "train.max_steps": 5})
    sets = tuple(Override(key, value, "--set") for key, value in {**changes, "train.max_steps": 16}.items())
    child = fork(parent, local.workspace.runs, sets=sets, run_id=f"child-{name}", environ={})
    run = local.open(child)
    assert run.progress.skipped_sequences == skipped
    assert finish(run).status == "completed"
    run.events.close()
    assert len(set(read)) == len(read)


def test_every_shape_of_a_curriculum_is_compiled() -> None:
    """torch.compile gives up after 8 shapes of one function unless it is told that there are more."""
    shapes = [(rows, length) for rows in (1, 2, 4) for length in (8, 16, 32, 64)]
    compiled = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        compiled.append(tuple(example[0].shape))
        return graph.forward

    with torch._dynamo.config.patch(recompile_limit=8):  # type: ignore[no-untyped-call]
        allow_recompiles(len(shapes))
        double = torch.compile(lambda x: 2 * x, backend=backend, dynamic=False)
        for shape in shapes:
            assert double(torch.ones(shape)).sum() == 2 * math.prod(shape)
    assert compiled == shapes
    torch._dynamo.reset()
