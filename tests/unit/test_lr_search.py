"""The search's decisions: on known landscapes it ends at the best rate, and it goes on from wherever it was."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.optimizers import spec_of
from gpuworkbench.config.schema import OptimizerConfig, RunConfig, TrainConfig
from gpuworkbench.errors import RunError, UsageError, WorkbenchError
from gpuworkbench.plan.lr_search import (
    MAX_EXTENSIONS,
    RangeTest,
    SearchPlan,
    Trial,
    best_of,
    first_grid,
    geometric_grid,
    has_diverged,
    lr_of_lowest_loss,
    next_trials,
    notes,
    range_test_lrs,
    ranked,
    smoothed,
    summarize,
)
from gpuworkbench.plan.lr_search_files import SearchFiles, default_directory, open_search
from gpuworkbench.registry import OPTIMIZERS

CONFIG = RunConfig(schema_version=1, model=Gpt2Config(), train=TrainConfig(max_steps=10))


def plan(**keys: object) -> SearchPlan:
    defaults = {
        "preset": "p",
        "label": "p, adamw",
        "steps": 100,
        "full_steps": 100,
        "seeds": (1,),
        "lr_range": (1e-5, 1.0),
        "range_steps": 51,
    }
    return msgspec.convert({**defaults, **keys}, SearchPlan)


def trial(lr: float, val_loss: float | None, seed: int = 1) -> Trial:
    diverged = "" if val_loss is not None else "loss is nan at step 3"
    return Trial(lr=lr, seed=seed, losses=(5.0, 4.0), val_loss=val_loss, diverged=diverged, seconds=1.0)


def valley(best: float, diverges_at: float = math.inf, noise: float = 0.0):
    """A loss that is lowest at rate `best`, a parabola over log(lr)."""

    def loss(lr: float, seed: int) -> float | None:
        return None if lr >= diverges_at else 3 + math.log(lr / best) ** 2 + noise * seed

    return loss


def searched(search: SearchPlan, loss, test: RangeTest | None = None) -> list[Trial]:
    trials: list[Trial] = []
    while todo := next_trials(search, test, trials):
        assert len(trials) < 200
        trials += [trial(work.lr, loss(work.lr, work.seed), work.seed) for work in todo]
    return trials


def range_test(search: SearchPlan, best: float) -> RangeTest:
    """What a range test would see: a fall up to `best`, then a rise."""
    lrs, losses = range_test_lrs(search), []
    for lr in lrs:
        losses.append(3 + 0.5 * abs(math.log(lr / best)))
        if has_diverged(losses):
            break
    return RangeTest(lrs=tuple(lrs[: len(losses)]), losses=tuple(losses), seconds=1.0)


def test_grids_are_geometric_and_typeable() -> None:
    assert geometric_grid(1e-4, 1e-2, 3) == (1e-4, 1e-3, 1e-2)
    assert geometric_grid(1e-4, 1e-2, 1) == (1e-3,)
    assert geometric_grid(1e-3, 8e-3, 4) == (1e-3, 2e-3, 4e-3, 8e-3)
    assert all(lr == float(f"{lr:g}") for lr in geometric_grid(1.23456e-4, 9.87654e-1, 7))


def test_the_range_test_rises_by_a_constant_factor() -> None:
    lrs = range_test_lrs(plan())
    assert (lrs[0], lrs[-1]) == (1e-5, pytest.approx(1.0))
    ratios = [b / a for a, b in pairwise(lrs)]
    assert ratios == pytest.approx([10 ** (5 / 50)] * 50)


def test_smoothing_is_adams_corrected_average() -> None:
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0] * 3)
    assert smoothed([1.0, 2.0]) == pytest.approx([1.0, (0.8 * 0.2 * 1 + 0.2 * 2) / (1 - 0.64)])
    assert smoothed([1.0, None, 1.0]) == smoothed([1.0, math.inf]) == [1.0]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], False),
        ([5.0], False),
        ([5.0, None], True),
        ([5.0, 5.2, 4.9, 5.1], False),  # noise
        ([5.0, 4.0, 3.0, 3.0, 3.1], False),
        ([5.0, 4.0, 3.0, 3.0, 9.0], True),
        ([5.0, 5.0, 5.0, 7.0], True),
    ],
)
def test_divergence_of_a_range_test(losses: list[float | None], expected: bool) -> None:
    assert has_diverged(losses) is expected


@pytest.mark.parametrize("best", [1e-3, 2.7e-2, 0.3])
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_the_range_test_places_the_grid_and_the_best_is_found(best: float, n_seeds: int) -> None:
    search = plan(seeds=tuple(range(n_seeds)))
    test = range_test(search, 2 * best)
    assert lr_of_lowest_loss(test) == pytest.approx(2 * best, rel=1.0)
    trials = searched(search, valley(best), test)
    found = best_of(trials)
    assert found is not None
    assert abs(math.log(found.lr / best)) <= math.log(2) / 4 + 0.01  # a quarter of the grid's factor, after refining
    assert {(t.lr, t.seed) for t in trials} == {(lr, s) for lr in {t.lr for t in trials} for s in range(n_seeds)}


def test_a_grid_too_low_or_too_high_grows_towards_the_best() -> None:
    for best in (1e-3, 0.064):
        search = plan(grid=(4e-3, 8e-3, 1.6e-2))
        found = best_of(searched(search, valley(best)))
        assert found is not None
        assert found.lr == best


def test_it_grows_so_far_and_no_further_and_says_so() -> None:
    search = plan(grid=(1e-3, 2e-3))
    trials = searched(search, valley(1.0))
    assert max(t.lr for t in trials) == 2e-3 * 2**MAX_EXTENSIONS
    assert notes(search, trials)[0] == "the best rate is the highest that was tried: a better one may lie beyond"


def test_rates_that_a_person_names_are_all_that_is_tried() -> None:
    search = plan(grid=(1e-3, 2e-3), adapts=False)
    assert [t.lr for t in searched(search, valley(1.0))] == [1e-3, 2e-3]
    one = plan(grid=(1e-3,), adapts=False)
    assert "is the only that was tried" in notes(one, searched(one, valley(1.0)))[0]


def test_diverged_trials_are_results_and_rank_last() -> None:
    search = plan(grid=(1e-3, 2e-3, 4e-3, 8e-3))
    trials = searched(search, valley(1e-2, diverges_at=3e-3))
    found = best_of(trials)
    assert found is not None
    assert 2e-3 <= found.lr < 3e-3
    assert ranked(summarize(trials))[-1].diverged == "loss is nan at step 3"


def test_one_diverged_seed_is_a_diverged_rate() -> None:
    rates = summarize([trial(1e-3, 3.0, 1), trial(1e-3, None, 2), trial(5e-4, 4.0, 1), trial(5e-4, 4.5, 2)])
    assert [(rate.lr, rate.val_loss, rate.spread) for rate in ranked(rates)] == [(5e-4, 4.25, 0.5), (1e-3, None, 0.0)]


def test_where_everything_diverges_it_looks_below_and_then_gives_up() -> None:
    search = plan(grid=(1.0, 2.0))
    trials = searched(search, valley(1e-9, diverges_at=1e-9))
    assert best_of(trials) is None
    assert len(trials) == 2 + MAX_EXTENSIONS
    assert notes(search, trials) == []
    found = best_of(searched(search, valley(0.02, diverges_at=0.1)))
    assert found is not None
    assert found.lr < 0.1


def test_seeds_take_turns() -> None:
    search = plan(grid=(1e-3, 2e-3), seeds=(7, 8), adapts=False)
    assert next_trials(search, None, []) == [(1e-3, 7), (2e-3, 7), (1e-3, 8), (2e-3, 8)]


@given(best=st.floats(1e-4, 1e-1), stop=st.integers(0, 12), damaged=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_a_search_that_was_cut_off_ends_like_one_that_was_not(best: float, stop: int, damaged: int) -> None:
    search, loss = plan(grid=(1e-3, 4e-3, 1.6e-2), seeds=(1, 2), factor=4.0), valley(best, noise=0.01)
    whole = searched(search, loss)
    kept = [t for index, t in enumerate(whole[:stop]) if index != damaged]
    while todo := next_trials(search, None, kept):
        kept.append(trial(todo[0].lr, loss(*todo[0]), todo[0].seed))
    assert sorted((t.lr, t.seed) for t in kept) == sorted((t.lr, t.seed) for t in whole)


def test_ties_seeds_and_the_horizon_are_said() -> None:
    search = plan(grid=(1e-3, 2e-3, 4e-3), seeds=(1, 2), full_steps=3200, adapts=False)
    losses = {(1e-3, 1): 3.2, (1e-3, 2): 3.3, (2e-3, 1): 3.0, (2e-3, 2): 3.2, (4e-3, 1): 3.1, (4e-3, 2): 3.15}
    trials = [trial(lr, loss, seed) for (lr, seed), loss in losses.items()]
    said = notes(search, trials)
    assert said[0] == "0.002 and 0.004 are closer than their spread over seeds (0.200): a tie"
    assert "perhaps 0.00066 there" in said[1]  # 2e-3 * 32^-0.32
    assert "one seed" in notes(plan(grid=(1e-3,), adapts=False), [trial(1e-3, 3.0)])[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_says_where_to_search(name: str) -> None:
    low, high = spec_of(name).lr_range
    assert 0 < low < OptimizerConfig().lr < high
    assert first_grid(plan(lr_range=(low, high)), range_test(plan(lr_range=(low, high)), low * 10))[0] > 0


class TestFiles:
    """The directory of a search."""

    def test_what_is_written_comes_back(self, tmp_path: Path) -> None:
        search = plan(grid=(1e-3,))
        files = open_search(tmp_path / "a" / "b", search, CONFIG)
        assert (files.read_plan(), files.read_config(), files.read_trials()) == (search, CONFIG, [])
        done = [trial(1e-3, 3.0), trial(1e-3, None, 2)]
        for each in done:
            files.write(files.trial(each.lr, each.seed), each)
        assert open_search(files.root, search, CONFIG).read_trials() == done

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lr": 1}', b"\xff", b"[" * 10**5, b'{"lr": NaN}'])
    def test_a_damaged_trial_is_still_to_do(self, tmp_path: Path, content: bytes) -> None:
        files = open_search(tmp_path, plan(grid=(1e-3,)), CONFIG)
        files.trial(1e-3, 1).write_bytes(content)
        files.range_test.write_bytes(content)
        assert files.read_trials() == []
        assert files.read_range_test() is None

    def test_a_trial_under_anothers_name_does_not_count(self, tmp_path: Path) -> None:
        files = open_search(tmp_path, plan(grid=(1e-3,)), CONFIG)
        files.write(files.trial(1e-3, 1), trial(2e-3, 3.0))
        (tmp_path / "trial-0.002-1.json").symlink_to(files.trial(1e-3, 1))
        assert files.read_trials() == []

    def test_another_search_in_its_place_is_refused_by_what_differs(self, tmp_path: Path) -> None:
        open_search(tmp_path, plan(grid=(1e-3,)), CONFIG)
        with pytest.raises(UsageError, match=r"holds another search: steps: 100 -> 50"):
            open_search(tmp_path, plan(grid=(1e-3,), steps=50), CONFIG)
        other = msgspec.structs.replace(CONFIG, optimizer=OptimizerConfig(name="lion"))
        with pytest.raises(UsageError, match=r"another configuration: optimizer\.name: 'adamw' -> 'lion'"):
            open_search(tmp_path, plan(grid=(1e-3,)), other)

    def test_a_place_with_other_files_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(UsageError, match="holds files, and no search"):
            open_search(tmp_path, plan(), CONFIG)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("kind", ["file", "plan"])
    def test_what_cannot_be_a_search_is_one_line(self, tmp_path: Path, kind: str) -> None:
        if kind == "file":
            place = tmp_path / "file"
            place.write_text("x")
        else:
            place = tmp_path
            open_search(place, plan(), CONFIG).plan.write_bytes(b"no json")
        with pytest.raises(WorkbenchError) as caught:
            open_search(place, plan(), CONFIG)
        assert isinstance(caught.value, RunError)

    def test_the_default_place_is_the_same_for_the_same_request_only(self) -> None:
        search = plan()
        assert default_directory(search, CONFIG) == default_directory(plan(), CONFIG)
        assert default_directory(plan(steps=99), CONFIG) != default_directory(search, CONFIG)
        assert SearchFiles(Path("a")).trial(1e-3, 5).name == "trial-0.001-5.json"
