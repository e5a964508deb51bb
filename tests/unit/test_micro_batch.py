"""The search for the largest micro-batch: against an oracle that knows, and by real probes on this machine."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuworkbench import cli
from gpuworkbench.config.loader import parse_set
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import DoesNotFitError, WorkbenchError
from gpuworkbench.gpu.card import Card
from gpuworkbench.launch.create import LaunchRequest
from gpuworkbench.launch.micro_batch import largest_micro_batch, remembered_line, sets_for_launch
from gpuworkbench.plan.analytic import Estimate, estimate
from gpuworkbench.plan.micro_batch import (
    largest_that_fits,
    micro_batch_path,
    read_micro_batch,
    sizes,
    with_micro_batch,
)
from gpuworkbench.plan.probes import Probe, probe_path, read_probe
from gpuworkbench.plan.remembered import write
from gpuworkbench.plan.targets import Target
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import GIB, MIB

NO_EVAL = "eval.interval_steps=0"  # or its tokens would have to be whole batches
SEQUENCES = 48  # 1 2 3 4 6 8 12 16 24 48


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def made(*sets: str) -> RunConfig:
    config = with_known_vocabulary(configure(load_preset("quickstart"), sets=[parse_set(text) for text in sets]))
    assert config is not None
    return config


def stepped(micro: int = 4, *sets: str) -> RunConfig:
    return made(f"train.micro_batch_size={micro}", f"train.grad_accum_steps={SEQUENCES // micro}", NO_EVAL, *sets)


CARD = Card(index=0, uuid="GPU-1", name="Card", compute_capability=(8, 6), memory_total_bytes=GIB, driver_version="1")
TARGET = Target("cuda", "this card", GIB, card=CARD)


class Oracle:
    """A card on which a micro-batch of n takes n times 10 MiB; beyond its memory a probe fails."""

    def __init__(self, out_of_memory_from: int = 10**9) -> None:
        self.asked: list[int] = []
        self.out_of_memory_from = out_of_memory_from

    def __call__(self, config: RunConfig, predicted: Estimate, target: Target, say: Any) -> Estimate:
        size = config.train.micro_batch_size
        assert config.train.grad_accum_steps * size == SEQUENCES
        self.asked.append(size)
        if size >= self.out_of_memory_from:
            raise DoesNotFitError("the probe failed: out of memory")
        return msgspec.structs.replace(predicted, total_bytes=size * 10 * MIB)


@pytest.mark.parametrize("ordered", [[1], [1, 2], [1, 2, 3, 4, 6, 8, 12, 16, 24, 48], [2**k for k in range(11)]])
def test_every_limit_from_every_start_is_found_asking_no_size_twice(ordered: list[int]) -> None:
    for start in ordered:
        for limit in range(ordered[-1] + 2):  # 0: none fits; beyond the last: all do
            asked: list[int] = []

            def fits(size: int, limit: int = limit, asked: list[int] = asked) -> bool:
                asked.append(size)
                return size <= limit

            expected = max((size for size in ordered if size <= limit), default=None)
            assert largest_that_fits(ordered, start, fits) == expected
            assert len(asked) == len(set(asked)) <= len(ordered)
            assert asked[0] == start


def test_a_search_takes_logarithmically_many_probes() -> None:
    ordered = list(range(1, 1025))
    for limit in (1, 2, 511, 512, 513, 1023, 1024):
        asked: list[int] = []

        def fits(size: int, limit: int = limit, asked: list[int] = asked) -> bool:
            asked.append(size)
            return size <= limit

        assert largest_that_fits(ordered, 1, fits) == limit
        assert len(asked) <= 2 * 10 + 1  # as many doublings, as many halvings


def test_sizes_make_the_same_step_and_keep_the_rules() -> None:
    config = stepped()
    assert sizes(config) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]
    assert {with_micro_batch(config, size).tokens_per_step for size in sizes(config)} == {config.tokens_per_step}
    one_only = stepped(48, "memory.optimizer_in_backward=true", "train.grad_clip_norm=0")
    assert sizes(one_only) == [48]  # updates in backward accumulate nothing


@pytest.mark.parametrize(("limit_mib", "expected"), [(600, 48), (522, 48), (521, 24), (130, 8), (11, 1)])
def test_what_fits_is_what_the_planner_calls_fitting(limit_mib: int, expected: int) -> None:
    """Within 92 %: 480 of 522 MiB are, of 521 they are not."""
    target = TARGET._replace(limit_bytes=limit_mib * MIB)
    found = largest_micro_batch(small(), target, lambda _: None, probing=Oracle())
    assert (found.micro_batch_size, found.grad_accum_steps) == (expected, SEQUENCES // expected)
    assert found.needed_bytes == expected * 10 * MIB
    assert found.sets == (f"train.micro_batch_size={expected}", f"train.grad_accum_steps={SEQUENCES // expected}")


def small() -> RunConfig:
    """So small that no formula is beyond any of the limits above but by the context, which the oracle leaves out."""
    return stepped()


@pytest.fixture(autouse=True)
def _formulas_do_not_cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "formulas" not in request.node.name:
        monkeypatch.setattr("gpuworkbench.launch.micro_batch.HOPELESS", 10**6)


def test_running_out_of_memory_is_an_answer() -> None:
    oracle = Oracle(out_of_memory_from=12)
    assert largest_micro_batch(small(), TARGET, lambda _: None, probing=oracle).micro_batch_size == 8
    assert oracle.asked == [4, 8, 16, 12]


def test_any_other_failure_of_a_probe_ends_the_search_and_is_not_remembered() -> None:
    def broken(*_: object) -> Estimate:
        raise WorkbenchError("the probe failed: no driver")

    with pytest.raises(WorkbenchError, match="no driver"):
        largest_micro_batch(small(), TARGET, lambda _: None, probing=broken)
    assert read_micro_batch(small(), TARGET) is None


def test_where_none_fits_it_says_so_and_remembers_nothing() -> None:
    with pytest.raises(DoesNotFitError, match="not even the smallest"):
        largest_micro_batch(small(), TARGET, lambda _: None, probing=Oracle(out_of_memory_from=1))
    assert read_micro_batch(small(), TARGET) is None


def test_what_formulas_put_far_beyond_is_not_tried() -> None:
    """A batch of 48 x 128 is predicted to need more than twice 500 MiB."""
    oracle, said = Oracle(), list[str]()
    predicted = estimate(with_micro_batch(stepped(), 48), kind="cuda")
    assert predicted is not None
    target = TARGET._replace(limit_bytes=predicted.total_bytes // 2 - 1)
    largest_micro_batch(stepped(), target, said.append, probing=oracle)
    assert 48 not in oracle.asked
    assert any("micro-batch 48: beyond the memory by the formulas" in line for line in said)


def test_it_is_remembered_per_card_driver_and_shape() -> None:
    oracle = Oracle(out_of_memory_from=12)
    found = largest_micro_batch(small(), TARGET, lambda _: None, probing=oracle)
    n_asked = len(oracle.asked)
    assert largest_micro_batch(small(), TARGET, lambda _: None, probing=oracle) == found
    assert largest_micro_batch(stepped(1), TARGET, lambda _: None, probing=oracle) == found  # the same step, cut else
    assert len(oracle.asked) == n_asked
    for change in (
        {"driver_version": "2"},
        {"uuid": "GPU-2"},
        {"memory_total_bytes": 2 * GIB},
        {"compute_capability": (9, 0)},
        {"name": "Other"},
    ):
        other = TARGET._replace(card=msgspec.structs.replace(CARD, **change))
        assert read_micro_batch(small(), other) is None
    for text in ("model.n_layer=5", "memory.chunked_cross_entropy=true", "train.seq_len=64", "optimizer.name=lion"):
        assert read_micro_batch(stepped(4, text), TARGET) is None
    assert read_micro_batch(small(), TARGET, 100 * MIB) is None
    assert read_micro_batch(stepped(4, "optimizer.lr=1e-4"), TARGET) == found  # takes no memory


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": -8, "grad_accum_steps": -6},
        {"micro_batch_size": 0},
        {"micro_batch_size": 8, "grad_accum_steps": 7},  # another step
        {"micro_batch_size": 96, "grad_accum_steps": 1},
        {"needed_bytes": 1},  # less than the weights
        {"needed_bytes": -1},
        {"needed_bytes": 2 * GIB},  # beyond its own limit
        {"limit_bytes": 0},
        {"limit_bytes": 2**60},
        {"n_probes": 0},
    ],
)
def test_what_no_search_finds_is_not_believed(changes: dict[str, int]) -> None:
    oracle = Oracle(out_of_memory_from=12)
    found = largest_micro_batch(small(), TARGET, lambda _: None, probing=oracle)
    path = micro_batch_path(small(), TARGET)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, **changes)))
    assert remembered_line(small(), TARGET) is None
    n_asked = len(oracle.asked)
    assert largest_micro_batch(small(), TARGET, lambda _: None, probing=oracle) == found
    assert len(oracle.asked) > n_asked
    assert read_micro_batch(small(), TARGET) == found


def test_a_remembered_size_that_the_rules_refuse_is_not_believed() -> None:
    """Validation takes whole batches: 256 sequences' tokens are none of 48 or of 3."""
    found = largest_micro_batch(small(), TARGET, lambda _: None, probing=Oracle(out_of_memory_from=4))
    assert found.micro_batch_size == 3
    validating = stepped(4, "eval.interval_steps=10", "eval.tokens=32768")
    assert micro_batch_path(validating, TARGET) == micro_batch_path(small(), TARGET)
    assert read_micro_batch(validating, TARGET) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"peak_bytes": 0},
        {"peak_bytes": -1},
        {"peak_bytes": 2**60},
        {"step_time_s": 0.0},
        {"context_bytes": -1},
        {"host_rss_bytes": 0},
    ],
)
def test_what_no_probe_measures_is_not_believed(changes: dict[str, Any]) -> None:
    path, probe = probe_path(small(), TARGET), Probe(peak_bytes=MIB, step_time_s=0.5, context_bytes=MIB)
    write(path, probe)
    assert read_probe(path) == probe
    write(path, msgspec.structs.replace(probe, **changes))
    assert read_probe(path) is None


def test_a_plan_says_what_is_remembered_where_it_differs() -> None:
    assert remembered_line(small(), TARGET) is None
    largest_micro_batch(small(), TARGET, lambda _: None, probing=Oracle(out_of_memory_from=12))
    line = remembered_line(small(), TARGET)
    assert line is not None
    assert "--set train.micro_batch_size=8 --set train.grad_accum_steps=6" in line
    assert remembered_line(with_micro_batch(small(), 8), TARGET) is None


def test_a_card_that_is_not_here_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match="needs the card"):
        largest_micro_batch(small(), TARGET._replace(card=None), lambda _: None, probing=Oracle())


TINY = [
    "--preset", "quickstart", "--set", "hybrid.enabled=false", "--set", "model.n_layer=1", "--set", "model.n_embd=64",
    "--set", "model.n_head=2", "--set", "train.threads=1", "--set", "eval.interval_steps=0",
]  # fmt: skip


def searched(capsys: pytest.CaptureFixture[str], within: str, micro: int) -> dict[str, Any]:
    step = ["--set", f"train.micro_batch_size={micro}", "--set", f"train.grad_accum_steps={128 // micro}"]
    assert cli.main(["plan", *TINY, *step, "--largest-micro-batch", "--within", within, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_real_probes_find_it_and_a_launch_takes_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Tensors of real steps on this CPU; twice the found size would be beyond what fits."""
    found = searched(capsys, "600MiB", 4)
    size = found["micro_batch_size"]
    assert 4 < size < 128
    assert size * found["grad_accum_steps"] == 128
    limit = 600 * MIB
    assert found["needed_bytes"] <= 0.92 * limit
    bigger = estimate(
        with_micro_batch(made(*sets_of(TINY), *[f"train.micro_batch_size={2 * size}"]), 2 * size), kind="cpu"
    )
    assert bigger is not None
    assert bigger.host_bytes > 0.87 * limit  # the formulas are within 5 %
    assert searched(capsys, "600MiB", 4) == found  # remembered, whatever way the step is cut
    assert searched(capsys, "600MiB", 1)["micro_batch_size"] == size


def sets_of(words: list[str]) -> list[str]:
    return [text for flag, text in pairwise(words) if flag == "--set"]


def test_a_launch_uses_what_is_found_or_says_what_is_remembered(tmp_path: Path) -> None:
    sets = [*sets_of(TINY), "train.micro_batch_size=1", "train.grad_accum_steps=4"]
    request = LaunchRequest(preset="quickstart", runs_dir=tmp_path, sets=tuple(map(parse_set, sets)), environ={})
    said: list[str] = []
    assert sets_for_launch(request, said.append, is_asked_for=False) == ()
    assert said == []
    chosen = sets_for_launch(request, said.append, is_asked_for=True)
    assert [(each.key, each.value) for each in chosen] == [("train.micro_batch_size", 4), ("train.grad_accum_steps", 1)]
    said.clear()
    assert sets_for_launch(request, said.append, is_asked_for=False) == ()
    assert "--set train.micro_batch_size=4 --set train.grad_accum_steps=1" in said[0]


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--preset", "quickstart", "--within", "1GiB"],
        ["plan", "--preset", "quickstart", "--largest-micro-batch", "--within", "much"],
        ["--headless", "--resume", "x", "--largest-micro-batch"],
        ["--headless", "--largest-micro-batch"],
    ],
)
def test_requests_that_mean_nothing_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
