"""A run trains, validates and samples from everything that data.source can point at, and goes on at a resume."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.local_run import LocalRuns
from tests.fixtures.tiny_run import Workspace
from tests.unit.test_data_shards import shard_bytes

Made = tuple[str, dict[str, Any]]  # data.source below the folder, and other keys
Maker = Callable[[Path], Made]

TINY = {
    "train.threads": 1,
    "train.max_steps": 3,
    "model.n_layer": 1,
    "data.val_fraction": 0.2,
    "sample.interval_steps": 3,
}
TOKENS_PER_STEP = 4 * 2 * 32
LARGE_VOCABULARY = 70_000


def flags(sets: dict[str, Any]) -> list[str]:
    values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in sets.items()}
    return [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]


def chat(number: int) -> dict[str, object]:
    answer = f"It is {number} of course, as everybody knows. " * 3
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": answer}]}


def pairs(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"Say {i}.", "completion": f" It is {i}, it is {i}, and it stays {i}."} for i in range(n)]


def jsonl(records: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def make_chat(folder: Path) -> Made:
    (folder / "chat.jsonl.gz").write_bytes(gzip.compress(jsonl([chat(i) for i in range(60)])))
    return "chat.jsonl.gz", {}


def make_parquet(folder: Path) -> Made:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(pairs(100)), folder / "pairs.parquet", row_group_size=30)
    return "pairs.parquet", {"data.tokenizer": "bpe-300", "memory.chunked_cross_entropy": True}


def make_folder(folder: Path) -> Made:
    mixed = folder / "mixed" / "sub"
    mixed.mkdir(parents=True)
    (mixed.parent / "a.txt").write_text("A line of plain text.\n" * 200)
    (mixed / "b.txt.gz").write_bytes(gzip.compress(b"Another line, compressed.\n" * 200))
    (mixed / "c.jsonl").write_bytes(jsonl([chat(i) for i in range(30)]))
    return "mixed", {"data.loss_on": "all"}


def make_bare_tokens(folder: Path) -> Made:
    (folder / "bare").mkdir()
    tokens = np.tile(np.arange(65, dtype="<u2"), 40)
    tokens.tofile(folder / "bare" / "train.bin")
    tokens[:600].tofile(folder / "bare" / "val.bin")
    return "bare/train.bin", {"data.bin_vocab_size": 65, "data.tokenizer": "ids", "sample.prompt": "1 2 3"}


def make_large_vocabulary(folder: Path) -> Made:
    tokens = np.tile(np.array([LARGE_VOCABULARY - 1, 5, 66_000, 7]), 500)
    (folder / "large.bin").write_bytes(shard_bytes(tokens, magic=20240801, version=7))
    sets = {"model.vocab_size": LARGE_VOCABULARY, "data.tokenizer": "ids", "model.n_embd": 16, "sample.prompt": "5 7"}
    return "large.bin", {**sets, "memory.chunked_cross_entropy": True}


def make_masked_shards(folder: Path) -> Made:
    for split, n_tokens in (("train", 4000), ("val", 1000)):
        (folder / f"m_{split}.bin").write_bytes(shard_bytes(np.arange(n_tokens) % 250))
        (folder / f"m_{split}.mask").write_bytes((np.arange(n_tokens) % 5 == 0).tobytes())
    return "m_train.bin", {}


MAKERS = [make_chat, make_parquet, make_folder, make_bare_tokens, make_large_vocabulary, make_masked_shards]
MASKED = {"chat", "parquet", "masked_shards"}


def name_of(make: Maker) -> str:
    return make.__name__.removeprefix("make_")


@pytest.mark.parametrize("make", MAKERS, ids=name_of)
def test_a_run_trains_from(make: Maker, local: LocalRuns) -> None:
    name = name_of(make)
    folder = local.workspace.root / name
    folder.mkdir()
    source, sets = make(folder)
    run = local.trained(name, {**TINY, **sets, "data.source": str(folder / source)})
    steps = local.events(run, "step")
    (evaluation,), (sample,) = local.events(run, "eval"), local.events(run, "sample")
    assert [event["step"] for event in steps] == [1, 2, 3]
    assert all(event["loss"] > 0 for event in (*steps, evaluation))
    for event in steps:
        assert event["tokens_seen"] == event["step"] * TOKENS_PER_STEP
        assert (event.get("scored_tokens") is not None) == (name in MASKED)
        assert (event.get("scored_tokens") or 0) < TOKENS_PER_STEP
    assert (evaluation["tokens"] < 256) == (name in MASKED)
    if sets.get("data.tokenizer") == "ids":
        assert all(word.isdigit() for word in sample["text"].split())
        warnings = [event["message"] for event in local.events(run, "warning")]
        assert sum("token ids" in message for message in warnings) == 1


@pytest.mark.parametrize("make", [make_parquet, make_bare_tokens], ids=name_of)
def test_the_command_trains_from(make: Maker, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    source, sets = make(tmp_path)
    done = workspace.train("r", *flags({**TINY, **sets, "data.source": source}))
    assert done.returncode == 0, done.stderr
    assert sorted(workspace.losses("r")) == [1, 2, 3]


def test_a_resume_under_a_mask_is_bit_identical(local: LocalRuns) -> None:
    (local.workspace.root / "chat.jsonl").write_bytes(jsonl([chat(i) for i in range(60)]))
    sets = {
        "data.source": str(local.workspace.root / "chat.jsonl"),
        **TINY,
        "schedule.warmup_steps": 0,
        "schedule.name": "constant",
    }
    halved = local.trained("halved", {**sets, "train.max_steps": 3})
    again = local.trained("again", {**sets, "train.max_steps": 6})
    local.change(halved, {"train.max_steps": 6})
    assert local.attempt(halved) == 0
    assert local.losses(halved) == local.losses(again)
    assert len(local.losses(again)) == 6


def test_a_prompt_that_is_no_id_is_one_line(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    source, sets = make_bare_tokens(tmp_path)
    done = workspace.train("r", *flags({**TINY, **sets, "data.source": source, "sample.prompt": "Once"}))
    assert done.returncode == 2
    assert "'Once' is not a token id below 65" in done.stderr.splitlines()[-1]
    assert not (workspace.runs / "r").exists()
