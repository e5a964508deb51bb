"""`gpuworkbench plan`: its JSON, verdicts at their edges, other ways that are what they claim, and bad requests."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworkbench import cli
from gpuworkbench.commands import plan as command
from gpuworkbench.config.loader import parse_set
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.config.schema import CardConfig
from gpuworkbench.errors import UsageError
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.host import Host
from gpuworkbench.headless.plan_lines import plan_lines
from gpuworkbench.plan.analytic import PARTS, Verdict, estimate
from gpuworkbench.plan.calibration import Calibration, Record, calibration_path
from gpuworkbench.plan.fit_me import alternatives, candidates
from gpuworkbench.plan.judge import judge, shortages
from gpuworkbench.plan.report import make_plan
from gpuworkbench.plan.step_cost import step_cost
from gpuworkbench.plan.targets import Target, here, parse_card, sold_gib, target_of
from gpuworkbench.plan.vocabulary import with_known_vocabulary
from gpuworkbench.units import GIB, format_bytes

pytestmark = pytest.mark.usefixtures("surroundings")

CARD = Card(
    index=0,
    uuid="GPU-5080",
    name="NVIDIA GeForce RTX 5080",
    compute_capability=(12, 0),
    memory_total_bytes=16 * GIB,
    memory_free_bytes=6 * GIB,
    desktop_memory_bytes=GIB,
    power_limit_w=360.0,
)
HOST = Host(memory_total_bytes=64 * GIB, memory_available_bytes=40 * GIB, cpu_name="a", physical_cores=8, is_wsl=False)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `plan WORDS --json`."""
    code = cli.main(["plan", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_json_has_what_others_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = plan(capsys, "--preset", "rtx5080_1b", "--card", "16GiB")
    assert code == 0
    assert answer["verdict"] == "fits"
    assert set(answer["parts"]) == set(PARTS)
    assert sum(answer["parts"].values()) == answer["total_bytes"] <= 13 * GIB
    assert answer["limit_bytes"] == 16 * GIB
    assert answer["alternatives"] == []
    assert {"host_bytes", "pinned_bytes", "disk_bytes"} <= set(answer)
    assert answer["tier"] == "analytic"


def test_what_does_not_fit_is_printed_too_and_exits_4(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = plan(capsys, "--preset", "rtx5080_1b", "--card", "8GiB")
    assert code == 4
    assert answer["verdict"] == "does_not_fit"
    best = answer["alternatives"][0]
    assert best["verdict"] in ("fits", "tight")
    assert best["total_bytes"] <= 8 * GIB
    assert best["slowdown"] >= 1.0
    assert best["flags"] == " ".join(f"--set {text}" for text in best["sets"])


@pytest.mark.parametrize(
    ("gib", "preset"),
    [(16, "rtx4090_gpt2_small"), (8, "rtx5080_1b"), (12, "rtx5080_gpt2_xl"), (4, "rtx5080_gpt2_small_hybrid")],
)
def test_every_other_way_is_what_its_flags_make(gib: int, preset: str) -> None:
    """Planned anew with the flags: the same bytes, the tokens of a step kept, the promised step time."""
    config = configure(load_preset(preset))
    target = Target("cuda", "a card", gib * GIB, card_name="RTX 5080")
    ways = alternatives(config, target)
    assert ways
    for way in ways:
        again = configure(load_preset(preset), sets=[parse_set(text) for text in way.sets])
        predicted = estimate(again, kind="cuda")
        assert predicted is not None
        assert (predicted.total_bytes, predicted.host_bytes) == (way.total_bytes, way.host_bytes)
        assert again.tokens_per_step == config.tokens_per_step
        assert judge(predicted, target) is way.verdict
        ratio = step_cost(again, "RTX 5080").total_s / step_cost(config, "RTX 5080").total_s
        assert ratio == pytest.approx(way.slowdown, abs=1e-3)


def test_other_ways_are_ranked_and_none_has_a_change_to_spare() -> None:
    ways = alternatives(configure(load_preset("rtx5080_1b")), Target("cuda", "a card", 8 * GIB))
    sure = [way.slowdown for way in ways if way.verdict is Verdict.FITS]
    assert sure == sorted(sure)
    verdicts = [way.verdict for way in ways]
    assert verdicts == sorted(verdicts, key=[Verdict.FITS, Verdict.TIGHT].index)
    for way in ways:
        assert not any(set(other.sets) < set(way.sets) for other in ways)


@pytest.mark.parametrize(("preset", "kind"), [("quickstart", "cpu"), ("rtx5080_1b", "cuda")])
@pytest.mark.parametrize("factor", [None, 1.0, 1.2, 0.8])
def test_a_predicted_jump_is_compared_with_what_the_total_counts(preset: str, kind: str, factor: float | None) -> None:
    """On a CPU the process is in both, and what finished runs correct is corrected in both."""
    config = with_known_vocabulary(configure(load_preset(preset)))
    assert config is not None
    predicted = estimate(config, kind=kind)
    assert predicted is not None
    assert predicted.predict_bytes is not None
    learnt = None if factor is None else Calibration(factor=factor, n_runs=3, is_same_storage=True)
    made = make_plan(config, Target(kind, "a device", 64 * GIB), predicted, calibration=learnt)
    (line,) = [each for each in plan_lines(made, 80) if each.startswith("while a jump is predicted")]
    context = predicted.parts["CUDA context"]
    beside = -context if kind == "cuda" else predicted.host_bytes - predicted.total_bytes
    counted = round((predicted.predict_bytes + beside) * (factor or 1)) + (context if kind == "cuda" else 0)
    less = 1 - counted / made.needed_bytes
    assert line == f"while a jump is predicted: {format_bytes(counted)} ({less:.0%} less)"
    assert made.needed_bytes > counted


def test_what_a_prediction_keeps_may_lie_elsewhere() -> None:
    ways = alternatives(configure(load_preset("rtx5080_gpt2_small_hybrid")), Target("cuda", "a card", 4 * GIB))
    found = {way.sets: way for way in ways}
    for sets in (("hybrid.state_device=host",), ("hybrid.undo_storage=disk",)):
        assert found[sets].verdict is Verdict.FITS
        assert found[sets].slowdown == 1.0
    off = configure(load_preset("rtx5080_gpt2_small_hybrid"), sets=[parse_set("hybrid.enabled=false")])
    assert not any("hybrid." in text for way in alternatives(off, Target("cuda", "a card", GIB)) for text in way.sets)


def test_another_way_of_checkpointing_leaves_the_distance_out() -> None:
    sets = ["memory.activation_checkpointing=every_n", "memory.activation_checkpointing_every=4"]
    config = configure(load_preset("rtx5080_1b"), sets=[parse_set(text) for text in sets])
    ways = alternatives(config, Target("cuda", "a card", 8 * GIB))
    recomputing = [way for way in ways if "memory.activation_checkpointing=all" in way.sets]
    assert recomputing
    for way in recomputing:
        assert not any("checkpointing_every" in text for text in way.sets)
        again = configure(load_preset("rtx5080_1b"), sets=[parse_set(text) for text in (*sets[:1], *way.sets)])
        predicted = estimate(again, kind="cuda")
        assert predicted is not None
        assert predicted.total_bytes == way.total_bytes


SPARING = ("hybrid.undo_storage=disk", "checkpoint.in_background=false")


def test_a_way_that_needs_much_of_an_unknown_host_spares_it() -> None:
    best = alternatives(configure(load_preset("rtx5080_1b")), Target("cuda", "a card", 8 * GIB))[0]
    assert best.sets[-2:] == SPARING
    assert best.host_bytes < 22 * GIB


def test_a_way_spares_a_host_that_is_short_and_no_other() -> None:
    config = configure(load_preset("rtx5080_1b"))
    roomy = Target("cuda", "a card", 8 * GIB, host_bytes=128 * GIB, pinned_bytes=100 * GIB, disk_bytes=10**12)
    assert not any(text in SPARING for way in alternatives(config, roomy) for text in way.sets)
    ways = alternatives(config, roomy._replace(host_bytes=31 * GIB, pinned_bytes=24 * GIB))
    assert ways[0].sets[-2:] == SPARING
    assert ways[0].verdict is Verdict.FITS
    # Only the host is short: what it is spared by is enough.
    short = roomy._replace(limit_bytes=16 * GIB, host_bytes=24 * GIB)
    assert ("hybrid.undo_storage=disk",) in [way.sets for way in alternatives(config, short)]


def test_where_nothing_fits_the_smallest_are_told_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """A 7B shape on 16 GB: weights and gradients alone are more."""
    shape = ["model.n_layer=32", "model.n_embd=4096", "model.n_head=32", "model.seq_len=2048", "eval.interval_steps=0"]
    words = ["--preset", "rtx5080_1b", *(word for key in shape for word in ("--set", key)), "--card", "16GiB"]
    code, answer = plan(capsys, *words)
    assert code == 4
    assert 6.5e9 < answer["n_params"] < 7.5e9
    sizes = [way["total_bytes"] for way in answer["alternatives"]]
    assert sizes == sorted(sizes)
    assert min(sizes) > 16 * GIB
    assert cli.main(["plan", *words]) == 4
    assert "Nothing fits" in capsys.readouterr().out


def test_candidates_never_break_a_rule_or_change_the_model() -> None:
    config = configure(load_preset("rtx5080_gpt2_small_baseline"))
    made = list(candidates(config, "cuda"))
    assert len(made) > 50
    assert all(each.model == config.model and each.tokens_per_step == config.tokens_per_step for each in made)
    cpu = list(candidates(config, "cpu"))
    assert all(each.memory.optimizer_offload == config.memory.optimizer_offload for each in cpu)


def test_people_see_every_part_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--preset", "rtx5080_1b"]) == 0
    text = capsys.readouterr().out
    for word in ("weights", "8-bit residual", "gradients", "optimizer state", "activations", "logits", "CUDA context",
                 "total", "FITS", "16 GiB", "host memory", "checkpoints"):  # fmt: skip
        assert word in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_presets_card_is_planned_for_where_none_is_here() -> None:
    target = target_of(configure(load_preset("rtx5080_1b")), None, [], HOST, None)  # type: ignore[arg-type]
    assert target.limit_bytes == 16 * GIB
    assert target.host_bytes is None  # the verdict is that card's alone


def test_this_card_counts_without_the_desktop_and_now_only_what_is_free(tmp_path: Any) -> None:
    config = configure(load_preset("rtx5080_1b"))
    whole = target_of(config, "this", [CARD], HOST, tmp_path)
    assert whole.limit_bytes == 15 * GIB
    now = here(config, CARD, HOST, tmp_path, is_free_only=True)
    assert now.limit_bytes == 6 * GIB
    assert now.host_bytes == 40 * GIB
    assert whole.host_bytes == 64 * GIB


def test_host_pinned_memory_and_disk_are_judged_where_they_are_known() -> None:
    predicted = estimate(configure(load_preset("rtx5080_1b_exact")), kind="cuda")
    assert predicted is not None
    roomy = Target("cuda", "a card", 16 * GIB, host_bytes=64 * GIB, pinned_bytes=50 * GIB, disk_bytes=10**12)
    assert judge(predicted, roomy) is Verdict.FITS
    for name, what in (("host_bytes", "host memory"), ("pinned_bytes", "pinned memory"), ("disk_bytes", "disk")):
        exact = roomy._replace(**{name: getattr(predicted, name)})
        assert judge(predicted, exact) is not Verdict.DOES_NOT_FIT
        short = roomy._replace(**{name: getattr(predicted, name) - 1})
        assert judge(predicted, short) is Verdict.DOES_NOT_FIT
        assert [each.what for each in shortages(predicted, short)] == [what]


def test_a_capped_card_is_no_larger_than_its_cap(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = plan(capsys, "--preset", "rtx5080_1b", "--card", "16GiB", "--set", "device.memory_limit_gib=8")
    assert (code, answer["limit_bytes"]) == (4, 8 * GIB)
    assert answer["simulated_card"] == "simulated card, 8 GiB"


def test_a_capped_card_is_called_a_simulated_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--preset", "rtx5080_1b", "--card", "24GiB"]
    assert cli.main([*words, "--set", "device.memory_limit_gib=16"]) == 0
    head, below = capsys.readouterr().out.splitlines()[:2]
    assert head.startswith("rtx5080_1b (simulated card, 16 GiB): ")
    assert below == "planned for a card of 24 GiB, capped: simulated card, 16 GiB"
    assert cli.main(words) == 0
    assert "simulated" not in capsys.readouterr().out
    assert plan(capsys, *words[1:])[1]["simulated_card"] is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("1e9", 10**9), ("10B", 10**10), ("1_000_000", 10**6), ("1,000,000", 10**6), ("2.5M", 2_500_000),
     ("1.5e3", 1500), ("100k", 10**5), ("1T", 10**12), ("7", 7), ("1e18", 10**18), ("1E+9", 10**9)],
)  # fmt: skip
def test_tokens_as_people_write_them(text: str, tokens: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, "--preset", "rtx5080_1b", "--card", "16GiB", "--tokens", text)[1]["cost"]["tokens"] == tokens


@pytest.mark.parametrize("text", ["", "0", "0.5", "1.5", "-1e9", "1e-9", "10X", "1__000", "1_00", "1e99", "2e18", "nan",
                                  "inf", "0x10", "10 B B", "\u0661e9", "1e9\x1b[0m", "1e", "9" * 400])  # fmt: skip
def test_what_is_no_number_of_tokens_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--preset", "rtx5080_1b", f"--tokens={text}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error


def test_no_card_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--preset", "rtx5080_1b", "--card", "this"]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--card 16GiB" in error


@pytest.mark.parametrize("text", ["", "0", "16", "big", "16 apples", "-16GiB", "1e9GiB", "nan", "inf", "16GiB16GiB",
                                  "٣GiB", "16\x1b[0mGiB", "0.0001KiB", "this card"])  # fmt: skip
def test_sizes_that_are_none_are_refused_in_a_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--preset", "rtx5080_1b", f"--card={text}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        size = parse_card(text)
    except UsageError:
        return
    assert size is None or 64 * 2**20 <= size <= 2**50


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--preset", "quickstart", "some-run"],
        ["--preset", "no-such"],
        ["no-such-run"],
        ["--preset", "quickstart", "--tokens", "0"],
        ["--preset", "quickstart", "--set", "model.n_layer"],
        ["--preset", "quickstart", "--set", "data.tokenizer=new/tokenizer.json"],
        ["--preset", "quickstart", "--tier", "guess"],
    ],
)
def test_requests_that_mean_nothing_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--largest-micro-batch"], "here it works with --cpu-twin"),
        (["--largest-micro-batch", "--within", "8GiB"], "(--within is for a device that is here); search where it is"),
        (["--tier", "probe"], "here use --tier trace, or --cpu-twin"),
    ],
)
def test_what_needs_a_card_that_is_not_here_says_what_can_be_done(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--preset", "rtx5080_1b", *words]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert "--card this" not in error


@pytest.mark.parametrize(
    ("flag", "text", "said"),
    [
        ("--card", "10MiB", "is less than any run is planned for; give 64MiB to 1024TiB, or this"),
        ("--card", "2000TiB", "is more than any run is planned for; give 64MiB to 1024TiB, or this"),
        ("--card", "16", "is no memory's size; give one with its unit, such as 16GiB, or this"),
        ("--within", "0", "is no memory's size; give one with its unit, such as 16GiB\n"),
        ("--within", "10MiB", "give 64MiB to 1024TiB\n"),
        ("--within", "this", "is no memory's size; give one with its unit, such as 16GiB\n"),
    ],
)
def test_a_size_is_refused_by_what_is_wrong_with_it(
    flag: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["--largest-micro-batch"] if flag == "--within" else []
    assert cli.main(["plan", "--preset", "quickstart", *search, flag, text]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpuworkbench: {flag} '{text}' ")
    assert said in error


def test_tokens_cost_a_range_and_say_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    _, answer = plan(capsys, "--preset", "rtx5080_1b", "--card", "16GiB", "--tokens", "1000000000")
    cost = answer["cost"]
    low, high = cost["hours"]
    # 6 N FLOPs a token at 30 to 55 % of 112.6 TFLOP/s, attention, recompute and update on top
    assert 1e9 * 6 * 985e6 / (0.55 * 112.6e12) / 3600 < low < high < 2 * 1e9 * 6 * 985e6 / (0.30 * 112.6e12) / 3600
    assert cost["kwh"][0] < cost["kwh"][1]
    assert cost["steps"] == -(-(10**9) // 131_072)
    assert cost["disk_bytes"] == answer["disk_bytes"] + 2 * 10**9
    assert len(cost["sources"]) == 3


def test_a_host_without_runs_knows_no_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_records", lambda: [])
    _, answer = plan(capsys, "--preset", "quickstart", "--tokens", "1000000")
    assert answer["cost"]["hours"] is answer["cost"]["kwh"] is None


def test_finished_runs_correct_the_plan_and_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "read_records", lambda: [])
    _, plain = plan(capsys, "--preset", "quickstart", "--tokens", "1000000")
    record = Record(
        time_unix_s=0.0,
        kind="cpu",
        device=command.cpu_name() or "",
        preset="quickstart",
        storage="fp32",
        n_params=1,
        predicted_bytes=1000,
        measured_bytes=1100,
        flops_per_s=1e9,
    )
    other = msgspec.structs.replace(record, device="another", measured_bytes=3000)
    monkeypatch.setattr(command, "read_records", lambda: [other, record])
    _, answer = plan(capsys, "--preset", "quickstart", "--tokens", "1000000")
    assert answer["calibration"]["factor"] == 1.1
    assert answer["calibration"]["n_runs"] == 1
    assert answer["host_bytes"] == pytest.approx(1.1 * plain["host_bytes"], abs=2)
    assert sum(answer["parts"].values()) == answer["total_bytes"]
    low, high = answer["cost"]["hours"]
    assert low < high
    assert cli.main(["plan", "--preset", "quickstart"]) == 0
    assert "x1.100" in capsys.readouterr().out


def test_a_run_is_planned_as_it_was_resolved(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    from gpuworkbench.config.toml_io import dump_toml
    from gpuworkbench.runs.create import create_run

    config = configure(load_preset("quickstart"))
    model = msgspec.structs.replace(config.model, vocab_size=1000)
    create_run(tmp_path / "runs", "mine", b"", dump_toml(msgspec.structs.replace(config, model=model)))
    code, answer = plan(capsys, "mine")
    assert code == 0
    assert answer["n_params"] == model.n_params()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_fit_their_width_and_any_encoding(width: int) -> None:
    config = configure(load_preset("rtx5080_1b"))
    predicted = estimate(config, kind="cuda")
    assert predicted is not None
    made = make_plan(config, Target("cuda", "a card", 16 * GIB), predicted)
    bars = [line for line in plan_lines(made, width) if "GiB" in line and "█" in line]
    assert bars
    assert all(len(line) <= max(width, 45) for line in bars)
    "\n".join(plan_lines(made, width, is_unicode=False)).encode("ascii")


def test_records_live_in_the_users_state(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert calibration_path() == tmp_path / "gpuworkbench" / "calibration.jsonl"


@pytest.mark.parametrize(
    ("name", "memory_gib", "sold"),
    [
        ("RTX 5080 (16 GB)", 9.5, 16),
        ("RTX 4060 Ti (8 GB)", 7.5, 8),
        ("RTX 4060 Ti (8 GB)", 9.0, 10),
        ("a card", 9.5, 10),
        ("a card", 200.0, 200.0),
    ],
)
def test_a_card_that_is_not_here_has_what_it_is_sold_with(name: str, memory_gib: float, sold: float) -> None:
    assert sold_gib(CardConfig(name=name, compute_capability="8.0", memory_gib=memory_gib)) == sold
