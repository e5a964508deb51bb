"""Runs side by side: tables against hand-made runs, the command line, and what a person can name wrongly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gpuworkbench.cli import main
from gpuworkbench.events import schema
from gpuworkbench.runs.label import Label, write_label
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.store import forked_from, forks
from gpuworkbench.state.compare import compare, default_target, lineage, load
from gpuworkbench.state.compare_table import aligned, best_columns, lineage_lines, summary_table
from gpuworkbench.state.lineage import family_tree, parse_origin
from tests.fixtures.event_logs import LogBuilder
from tests.fixtures.recorded_run import HOSTILE, card_run, completed_run, hostile_run, loss_at, new_run
from tests.fixtures.run_family import run_family, variant_run

RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))


def plain_run(runs: Path, name: str, val: list[float], seconds: float) -> RunPaths:
    """Validations at steps 10, 20, ...; a step takes `seconds` and 100 tokens."""
    paths = new_run(runs, name)
    log = LogBuilder().start(run_id=name)
    for step in range(1, 10 * len(val) + 1):
        log.tick(seconds).step(step, 5.0 - step / 100, tokens_seen=step * 100, tokens_per_s=100 / seconds)
        if step % 10 == 0:
            log.eval(step, val[step // 10 - 1])
    log.write(paths.events)
    return paths


def test_summaries_and_the_time_to_a_loss(tmp_path: Path) -> None:
    runs = [load(plain_run(tmp_path, "a", [4, 3, 2.5], 1.0)), load(plain_run(tmp_path, "b", [3.5, 2.8, 2.9, 2.4], 0.5))]
    result = compare(runs, "step")
    assert result.metric == "val"
    assert result.target_loss == 2.5  # the worse of the best
    a, b = result.runs
    assert (a.best_val_loss, a.best_val_step, a.last_val_loss, a.last_loss) == (2.5, 30, 2.5, 4.7)
    assert (b.best_val_loss, b.last_val_loss, b.tokens, b.tokens_per_s) == (2.4, 2.4, 4000, 200)
    assert (a.target_step, a.target_tokens, a.target_elapsed_s) == (30, 3000, pytest.approx(30))
    assert (b.target_step, b.target_tokens, b.target_elapsed_s) == (40, 4000, pytest.approx(20))
    early = compare(runs, "time", 3.2).runs
    assert [run.target_step for run in early] == [20, 20]
    assert [run.target_elapsed_s for run in early] == pytest.approx([20, 10])
    assert [run.target_step for run in compare(runs, "time", 1.0).runs] == [None, None]


@pytest.mark.parametrize(("by", "shared"), [("step", 30), ("tokens", 3000), ("time", 20)])
def test_losses_at_equal_places_end_where_the_first_run_ends(tmp_path: Path, by: str, shared: float) -> None:
    runs = [load(plain_run(tmp_path, "a", [4, 3, 2.5], 1.0)), load(plain_run(tmp_path, "b", [3.5, 2.8, 2.9, 2.4], 0.5))]
    rows = compare(runs, by).losses  # type: ignore[arg-type]
    together = next(row for row in rows if row.x == pytest.approx(shared))
    expected = {"step": (2.5, 2.9), "tokens": (2.5, 2.9), "time": (3.0, 2.4)}[by]
    assert together.losses == pytest.approx(expected)
    assert [row.x for row in rows] == sorted(row.x for row in rows)


def test_without_validation_the_averaged_training_loss_counts(tmp_path: Path) -> None:
    runs = [load(completed_run(tmp_path)), load(card_run(tmp_path))]
    result = compare(runs)
    assert result.metric == "train"
    assert result.target_loss == default_target(runs, "train")
    assert all(run.target_step is not None for run in result.runs)
    assert [run.peak_memory_of for run in result.runs] == ["host", "card"]
    assert result.runs[1].best_val_loss is None


def test_runs_without_a_step_make_no_trouble(tmp_path: Path) -> None:
    runs = [load(new_run(tmp_path, "empty")), load(new_run(tmp_path, "empty-too"))]
    result = compare(runs)
    assert (result.target_loss, result.losses, result.differences, result.lineage) == (None, (), (), ())
    assert result.runs[0].elapsed_s is result.runs[0].mean_loss is None
    mixed = compare([load(completed_run(tmp_path)), runs[0]])
    assert mixed.metric == "val"
    assert all(row.losses[1] is None for row in mixed.losses)


def test_only_keys_that_differ_are_listed(tmp_path: Path) -> None:
    runs = [load(paths) for paths in run_family(tmp_path)]
    found = {item.key: item.values for item in compare(runs).differences}
    assert found == {"optimizer.lr": (0.003, 0.006, 0.0015, 0.003)}
    assert not compare([runs[0], runs[3]]).differences


def test_a_rate_changed_live_is_a_difference(tmp_path: Path) -> None:
    paths = new_run(tmp_path, "live")
    log = LogBuilder().start().step(1, 5.0)
    log.add(schema.ConfigChanged, 1, key="optimizer.lr_scale", old=1.0, new=0.5)
    log.write(paths.events)
    runs = [load(paths), load(completed_run(tmp_path))]
    assert {item.key: item.values for item in compare(runs).differences} == {"optimizer.lr_scale": (0.5, 1.0)}


def test_an_unreadable_configuration_is_said_and_compared_by_its_log(tmp_path: Path) -> None:
    first, second = run_family(tmp_path)[:2]
    second.run_toml.write_text("schema_version = 99")
    runs = [load(first), load(second)]
    assert "99" in runs[1].problem
    assert compare(runs).differences == ()
    assert compare(runs).runs[1].best_val_loss is not None


def test_forks_are_a_tree_with_their_siblings(tmp_path: Path) -> None:
    first, _, fork, _ = run_family(tmp_path)
    variant_run(tmp_path, "sibling", rate=1.5, last_step=50, forked_from=f"{first.run_id}@100")
    variant_run(tmp_path, "grandchild", rate=1.5, last_step=50, forked_from=f"{fork.run_id}@300")
    assert forked_from(fork) == f"{first.run_id}@200"
    assert forks(tmp_path)[first.run_id] == ""
    tree = lineage([load(fork)])
    assert lineage_lines(tree, {fork.run_id: "A"}) == [
        first.run_id,
        f"├─ {fork.run_id}  [A]  from step 200",
        "│  └─ grandchild  from step 300",
        "└─ sibling  from step 100",
    ]
    assert lineage([load(run_family(tmp_path / "other")[1])]) == []


def test_trees_take_whatever_files_claim() -> None:
    assert parse_origin("a@b@12") == ("a@b", 12)
    assert parse_origin("a") == parse_origin("a@x")._replace(run_id="a") == ("a", None)  # type: ignore[union-attr]
    assert parse_origin("") is None
    circle = family_tree(["a"], {"a": "b@1", "b": "c@1", "c": "a@1"})
    assert {branch.run_id for branch in circle} == {"a", "b", "c"}
    assert [branch.run_id for branch in family_tree(["x"], {"x": "x@3"})] == ["x"]
    gone = family_tree(["child"], {"child": "parent@5"})
    assert [(branch.run_id, branch.is_there, branch.from_step) for branch in gone] == [
        ("parent", False, None),
        ("child", True, 5),
    ]
    chain = {str(n): f"{n - 1}@1" for n in range(1, 3000)}
    assert len(family_tree(["2999"], chain)) <= 500


def test_the_best_of_each_column_is_marked(tmp_path: Path) -> None:
    result = compare([load(paths) for paths in run_family(tmp_path)], "time")
    best = best_columns(result)
    assert best["BEST VAL"] == min(range(4), key=lambda n: result.runs[n].best_val_loss or 99)
    assert best["TOK/S"] == 2
    last = summary_table(result).header[-1]
    assert best[last] == min(range(4), key=lambda n: result.runs[n].target_elapsed_s or 1e9)


def test_columns_stand_under_one_another() -> None:
    rows = aligned(["k", "value"], [["key", "1"], ["漢字", "100"]], right=[1])
    assert rows == ["k     value", "key       1", "漢字    100"]


# The command


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_prints_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [paths.run_id for paths in run_family(tmp_path)]
    code, out, err = call(capsys, "compare", *ids, "--runs-dir", str(tmp_path), "--by", "time", "--target-loss", "3")
    assert (code, err) == (0, "")
    assert re.search(r"^A +20231114-221320-quickstart-0001 +completed +400/400", out, re.M)
    assert re.search(r"^B +higher rate +completed", out, re.M)
    assert "TO 3.0000" in out
    assert "validation loss at equal time of training" in out
    assert re.search(r"^optimizer.lr +0.003 +0.006 +0.0015 +0.003$", out, re.M)
    assert "└─ 20231115-000000-quickstart-bbbb  [C]  from step 200" in out


def test_json_has_the_same_numbers_and_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = run_family(tmp_path)
    arguments = [str(one.root) for one in paths]
    code, out, _ = call(capsys, "compare", *arguments, "--json", "--by", "tokens")
    data = json.loads(out)
    result = compare([load(one) for one in paths], "tokens")
    assert code == 0
    assert [run["best_val_loss"] for run in data["runs"]] == [run.best_val_loss for run in result.runs]
    assert data["target_loss"] == result.target_loss
    assert data["differences"][0]["key"] == "optimizer.lr"
    assert data["curves"][0]["loss"][9] == [10 * 1024, loss_at(10)]
    assert data["lineage"][1]["from_step"] == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "RUN"),
        (["20231114-2213"], "2 to 8 runs, not 1"),
        (["20231114-2213", "20231114-221320-quickstart-0001"], "named twice"),
        (["20231114-2213", "nothing"], "no run 'nothing'"),
        (["20231114-2213", "20231115", "--by", "loss"], "none of step, tokens, time"),
        (["20231114-2213", "20231115", "--target-loss", "nan"], "not a loss"),
        (["20231114-2213", "20231115", "--target-loss", "-1"], "--target-loss"),
        (["20231114-2213", "20231115", "--target-loss", "x\x1b[31m"], "not a loss"),
        (["20231114-2213", "20231115", "--steps", "3"], "--steps"),
        ([str(n) for n in range(9)], "no run '0'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    run_family(tmp_path)
    code, out, err = call(capsys, "compare", *arguments, "--runs-dir", str(tmp_path))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert not RAW.search(err[:-1])


def test_a_log_that_is_no_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run_family(tmp_path)[:2]
    second.events.unlink()
    second.events.mkdir()
    code, out, err = call(capsys, "compare", first.run_id, second.run_id, "--runs-dir", str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_hostile_names_arrive_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, hostile = completed_run(tmp_path), hostile_run(tmp_path)
    write_label(first, Label(name=HOSTILE))
    code, out, _ = call(capsys, "compare", first.run_id, hostile.run_id, "--runs-dir", str(tmp_path))
    assert code == 0
    assert not RAW.search(out)


def test_runs_json_tells_origin_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_family(tmp_path)
    _, out, _ = call(capsys, "runs", "--json", "--runs-dir", str(tmp_path))
    by_id = {run["run_id"]: run for run in json.loads(out)}
    assert by_id["20231115-000000-quickstart-bbbb"]["forked_from"] == "20231114-221320-quickstart-0001@200"
    assert by_id["20231114-230000-quickstart-aaaa"]["notes"] == "seed 2\nwith less"
