"""`gpuworkbench data prepare` and `data inspect`: what they print, refuse, and leave for a run to find."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuworkbench import cli
from gpuworkbench.commands import progress
from gpuworkbench.commands.inspect import shown_tokens
from gpuworkbench.config.loader import build_overridden, parse_set
from gpuworkbench.data import Preview, prepare, preview
from gpuworkbench.data.prepare import prepare_data
from gpuworkbench.data.shards.split_writer import SplitWriter
from gpuworkbench.data.statistics import statistics
from gpuworkbench.errors import ExitCode
from tests.fixtures.data_configs import data_config

REPOSITORY = Path(__file__).resolve().parents[2]
LINES = [f"Строка {number % 150} of a text that is long enough." for number in range(200)]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GPUWORKBENCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GPUWORKBENCH_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join([*LINES, "kurz", "\x1b[31mrot"]) + "\n")


CLEANING = ("--tokenizer", "byte", "--documents", "line", "--dedup", "--min-chars", "9", "--normalize", "nfc")


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["data", *arguments, "--json"]) == ExitCode.OK
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["data", *arguments]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("gpuworkbench: ")
    return err.removeprefix("gpuworkbench: ").rstrip("\n")


class TestPrepare:
    def test_a_run_with_the_flags_it_prints_finds_the_tokens_at_once(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPUWORKBENCH__data__seed", "3")
        monkeypatch.setenv("GPUWORKBENCH__train__seed", "3")
        answer = as_json(capsys, "prepare", "text.txt", *CLEANING, "--set", "data.val_fraction=0.2")
        assert answer["documents"] == 150
        assert answer["sifted"]["dropped"]["duplicate"]["documents"] == 50
        assert answer["sifted"]["dropped"]["too short"]["examples"] == ["text.txt:201: kurz", "text.txt:202: ␛[31mrot"]
        monkeypatch.delenv("GPUWORKBENCH__data__seed")
        sets = [parse_set(word) for word in answer["sets"] if word != "--set"]
        table = {"schema_version": 1, "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "seq_len": 8}}
        config = build_overridden({**table, "train": {"max_steps": 1}}, sets, "x", "x")
        stages: list[str] = []
        found = prepare(config, on_progress=lambda stage, _: stages.append(stage))
        assert stages == []
        assert (str(found.directory), found.sha256) == (answer["directory"], answer["sha256"])

    def test_lines_for_people(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["data", "prepare", "text.txt", *CLEANING]) == 0
        out, err = capsys.readouterr()
        assert "documents  kept 150 of 202" in out
        assert "dropped    50 duplicate" in out
        assert "text.txt:202: ␛[31mrot" in out
        assert "--set data.documents=line" in out
        assert "tokens/s" in err
        assert "\x1b" not in out + err
        assert "\r" not in err
        assert cli.main(["data", "prepare", "text.txt", *CLEANING]) == 0
        again, err = capsys.readouterr()
        assert (again, err) == (out, "")

    def test_out(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        answer = as_json(capsys, "prepare", "text.txt", "--tokenizer", "bpe-300", "--out", "my shards")
        assert answer["directory"] == str(tmp_path / "my shards")
        assert answer["sets"] == ["--set", f"data.source={tmp_path}/my shards", "--set", "data.tokenizer=bpe-300"]
        again = as_json(capsys, "prepare", "text.txt", "--tokenizer", "my shards/tokenizer.json", "--out", "o")
        assert again["sets"] == ["--set", f"data.source={tmp_path}/o", "--set", f"data.tokenizer={tmp_path}/o"]
        used = prepare(data_config(tmp_path / "my shards", "bpe-300"))
        assert used.sha256 == answer["sha256"]
        assert not (tmp_path / "cache" / "data" / answer["directory"]).exists() or used.directory != answer["directory"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["prepare", "no.txt"], "no such file or folder"),
            (["prepare", "text.txt", "--min-chars", "-1"], "--min-chars: data.min_chars = -1 is not a whole number"),
            (["prepare", "text.txt", "--min-chars", "x"], "--min-chars: data.min_chars = 'x' is not a whole number"),
            (["prepare", "text.txt", "--normalize", "nfd"], "--normalize: data.normalize = 'nfd' is not one of"),
            (["prepare", "text.txt", "--documents", "word"], "--documents: data.documents = 'word' is not one of"),
            (["prepare", "text.txt", "--val-fraction", "nan"], "--val-fraction"),
            (["prepare", "text.txt", "--val-fraction", "0.6"], "--val-fraction: data.val_fraction = 0.6 is not"),
            (["prepare", "text.txt", "--seed", "1.5"], "--seed: data.seed = 1.5 is not"),
            (["prepare", "text.txt", "--tokenizer", "gtp2"], "gpt2"),
            (["prepare", "text.txt", "--workers", "0"], "--workers 0 is not from 1"),
            (["prepare", "text.txt", "--workers", "x"], "--workers"),
            (["prepare", "text.txt", "--set", "train.seed=1"], "--set train.seed: only keys of [data]"),
            (["prepare", "text.txt", "--set", "data.nothing=1"], "'data.nothing' is not a key"),
            (["prepare", "text.txt", "--set", "x"], "no '='"),
            (["prepare", "text.txt", "--out", "text.txt"], "is there already"),
            (["prepare", "text.txt", "--out", ""], "is no name of a folder"),
            (["prepare", "text.txt", "--out", "a\0b"], "is no name of a folder"),
            (["prepare", "synthetic", "--dedup"], "data.dedup = true cleans text"),
            (["prepare", "text.txt", "--samples", "2"], "there is no flag '--samples' of `data prepare`"),
            (["prepare"], "required: SOURCE"),
            ([], "required: ACTION"),
            (["inspekt"], "did you mean 'inspect'?"),
            (["inspect", "nothing-here"], "is no source and no run"),
            (["inspect", "a\0b"], "is no source and no run"),
            (["inspect", "text.txt", "--samples", "-1"], "--samples"),
            (["inspect", "text.txt", "--out", "x"], "there is no flag '--out' of `data inspect`"),
            (["prepare", "text.txt", "--runs-dir", "x"], "--runs-dir is not for `data prepare`"),
            (["inspect", "text.txt", "--steps", "1"], "--steps is not for `data inspect`"),
        ],
    )
    def test_refusals_are_one_line(
        self, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert words in refusal(capsys, *arguments)
        assert not list((tmp_path / "cache").glob("data/*"))


CHILD = """
import sys
from gpuworkbench import cli
from gpuworkbench.commands import data
from gpuworkbench.data import pipeline
pipeline.BATCH_CHARS = 20_000
pipeline.SAVE_INTERVAL_S = float(sys.argv[1])
class Shown(data.StageProgress):
    def __call__(self, stage, fraction):
        print(stage, fraction, file=sys.stderr, flush=True)
data.StageProgress = Shown
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("is_kept", [True, False])
def test_an_interruption_says_how_to_go_on(number: signal.Signals, code: int, is_kept: bool, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("".join(f"{n} бутылок пива на стене.\n" for n in range(40_000)))
    # Kept: interrupted in the middle. Not kept: while it waits for another process that holds the folder.
    words = ["data", "prepare", "long.txt", "--tokenizer", "byte"]
    command = [sys.executable, "-c", CHILD, "0", *words]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def read_until(process: subprocess.Popen[str], beginning: str) -> None:
        assert process.stderr is not None
        assert any(line.startswith(beginning) for line in process.stderr)

    first = started()
    read_until(first, "encoding with byte 0.2" if is_kept else "encoding with byte")
    if is_kept:
        first.send_signal(number)
        assert first.stderr is not None
        last = first.stderr.read().splitlines()[-1]
        assert first.wait(timeout=30) == ExitCode.STOPPED
        assert "stopped; the same command goes on after" in last
    else:
        first.send_signal(signal.SIGSTOP)
        with started() as second:
            read_until(second, "waiting for another process")
            second.send_signal(number)
            assert second.stderr is not None
            last = second.stderr.read().splitlines()[-1]
            assert second.wait(timeout=30) == code
        assert "the same command starts again" in last
        first.kill()
    first.communicate()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    fresh = prepare_data(data_config(tmp_path / "long.txt").data, cache_dir=tmp_path / "fresh")
    assert f"{fresh.n_train_tokens} training, {fresh.n_val_tokens} validation" in done.stdout


class TestInspect:
    def test_a_source_a_folder_shards_and_a_run_agree(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        source = as_json(capsys, "inspect", "text.txt", *CLEANING)
        assert (
            source["statistics"]["splits"]["train"]["documents"] + source["statistics"]["splits"]["val"]["documents"]
            == 2 * 150  # too few are kept for a split by document: the end of each is held out
        )
        assert source["sifted"]["kept_documents"] == 150
        folder = as_json(capsys, "inspect", source["directory"])
        assert folder == source
        out = as_json(capsys, "prepare", "text.txt", *CLEANING, "--out", "out")
        (tmp_path / "out" / "meta.json").unlink()
        shards = as_json(capsys, "inspect", "out", "--tokenizer", "byte")
        assert shards["statistics"] == source["statistics"]
        assert shards["samples"] == source["samples"]
        assert shards["sha256"] == out["sha256"]
        run = tmp_path / "runs" / "r"
        run.mkdir(parents=True)
        keys = "\n".join(f"{name[5:]} = {json.dumps(value)}" for name, value in chosen(CLEANING).items())
        (run / "run.toml").write_text(
            "schema_version = 1\n[model]\nfamily = 'gpt2'\nn_layer = 1\nn_head = 1\nn_embd = 8\nseq_len = 8\n"
            f"[train]\nmax_steps = 1\n[data]\nsource = {json.dumps(str(tmp_path / 'text.txt'))}\n{keys}\n"
        )
        for name in ("r", str(run)):
            assert as_json(capsys, "inspect", name) == source
        assert "--tokenizer is for a source" in refusal(capsys, "inspect", "r", "--tokenizer", "byte")
        (tmp_path / "text.txt").write_text("other text\n" * 100)
        with (run / "run.toml").open("a") as stream:
            stream.write(f"sha256 = '{source['sha256']}'\n")
        assert "the source gives other tokens now" in as_json(capsys, "inspect", "r")["warnings"][0]

    def test_counts_are_those_of_the_tokens(self, tmp_path: Path) -> None:
        text = "ёлка и дом. " * 500
        (tmp_path / "t.txt").write_text(text)
        found = statistics(prepare_data(data_config(tmp_path / "t.txt").data, cache_dir=tmp_path / "c"))
        assert sum(each.tokens for each in found.splits.values()) == len(text.encode()) + 2
        assert found.ids_seen == len(set(text.encode())) + 1
        assert found.splits["train"].bytes_per_token == pytest.approx(1.0, rel=0.02)  # cut letters
        counts = sorted((text.encode().count(value) for value in set(text.encode())), reverse=True)
        assert [each.count for each in found.frequent] == counts[:10]

    def test_what_is_scored_is_marked(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        folder = tmp_path / "chat"
        as_json(capsys, "prepare", "text.txt", "--tokenizer", "byte", "--out", "chat")
        for path in folder.glob("*.bin"):
            path.unlink()
        (folder / "meta.json").unlink()
        import numpy as np

        question, answer = b"2+2?\n", b"4\x1b"
        ids = np.array([256, *question, *answer, 256] * 40)
        scored = np.array([False] * 6 + [True] * 3, dtype=np.bool_)
        for split in ("train", "val"):
            with SplitWriter(folder, split, 257) as writer:  # type: ignore[arg-type]
                writer.append(ids, np.tile(scored, 40))
                writer.finish()
        assert cli.main(["data", "inspect", "chat", "--tokenizer", "byte", "--samples", "1"]) == 0
        out = capsys.readouterr().out
        assert "360 tokens" in out
        assert "33.3% scored" in out
        assert "2·+·2·?·␊·⟦4·␛·<|endoftext|>·⟧" in out
        assert "with an answer mask" in out
        (each,) = preview(prepare_data(data_config(folder).data), 1)
        assert each.scored is not None
        assert each.scored[:9] == (False,) * 5 + (True,) * 3 + (False,)

    def test_a_damaged_folder_is_one_line(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        as_json(capsys, "prepare", "text.txt", "--tokenizer", "byte", "--out", "out")
        (tmp_path / "out" / "train-00000.bin").write_bytes(b"")
        assert "out is not intact" in refusal(capsys, "inspect", "out")


def chosen(flags: tuple[str, ...]) -> dict[str, Any]:
    """The keys that CLEANING sets."""
    return {"data.tokenizer": "byte", "data.documents": "line", "data.dedup": True, "data.min_chars": 9} | {
        "data.normalize": flags[-1]
    }


def test_boundaries_and_marks() -> None:
    each = Preview("abc", (1, 2, 3), ("a", "b", "c"), (True, False, True))
    assert shown_tokens(each) == "⟦a·⟧b·⟦c·⟧"
    assert shown_tokens(each._replace(scored=None) if hasattr(each, "_replace") else Preview("a", (1,), ("a",))) == "a·"


def test_progress_tells_the_time_left_at_most_every_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    shown = progress.StageProgress(clock=lambda: now)
    for step in range(41):
        now = step / 4
        shown("encoding", 0.2 + step / 100)  # four hundredths a second: sixty left after the first two seconds: 18 s
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "data: encoding 20%",
        "data: encoding 28%, 18 s left",
        "data: encoding 36%, 16 s left",
        "data: encoding 44%, 14 s left",
        "data: encoding 52%, 12 s left",
        "data: encoding 60%, 10 s left",
    ]


def test_flags_survive_a_shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "my 'text'.txt").write_text("\n".join(LINES))
    assert cli.main(["data", "prepare", "my 'text'.txt", "--tokenizer", "byte"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("use it"))
    assert f"data.source={tmp_path}/my 'text'.txt" in shlex.split(line)
