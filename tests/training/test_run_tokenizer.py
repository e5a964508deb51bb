"""A run's weights and its tokenizer belong together: kept, carried into forks, and never mixed up."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from gpuworkbench.config.loader import Override
from gpuworkbench.data.tokenization.bpe import train_bpe
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer, load_tokenizer
from gpuworkbench.data.tokenization.tokenizer_export import write_tokenizer_json
from gpuworkbench.errors import DataError
from gpuworkbench.launch.fork import fork
from gpuworkbench.launch.resume import run_config
from gpuworkbench.runs.paths import RunPaths
from tests.fixtures.local_run import LocalRuns

SETS = {"train.max_steps": 4, "eval.interval_steps": 0, "checkpoint.interval_steps": 2}


@pytest.fixture(scope="module")
def parent(local: LocalRuns) -> RunPaths:
    return local.trained("bpe-parent", {**SETS, "data.tokenizer": "bpe-300"})


def forked(local: LocalRuns, parent: RunPaths, run_id: str, **sets: str) -> RunPaths:
    overrides = [Override(key.replace("__", "."), value, "--set") for key, value in sets.items()]
    return fork(parent, local.workspace.runs, sets=overrides, steps=6, run_id=run_id, environ={})


def test_a_run_stores_the_hash_of_its_tokenizer(parent: RunPaths) -> None:
    assert run_config(parent).data.tokenizer_sha256 == load_tokenizer(parent.tokenizer).sha256


def test_a_fork_onto_other_text_keeps_the_vocabulary(local: LocalRuns, parent: RunPaths, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("Entirely other words, many of them: zebra quartz jigsaw.\n" * 300)
    child = forked(local, parent, "other-text", data__source=str(text))
    data = run_config(child).data
    assert data.tokenizer_sha256 == run_config(parent).data.tokenizer_sha256
    assert data.tokenizer == str(parent.tokenizer)
    copied = RunPaths(tmp_path / "moved")
    shutil.copytree(child.root, copied.root)
    kept = parent.tokenizer.rename(tmp_path / "away")
    try:
        assert local.attempt(child) == 0, "the parent's folder is not needed"
    finally:
        kept.rename(parent.tokenizer)


def test_a_fork_with_another_tokenizer_is_refused(local: LocalRuns, parent: RunPaths) -> None:
    with pytest.raises(DataError) as caught:
        forked(local, parent, "other-tokenizer", data__tokenizer="byte")
    line = caught.value.line()
    assert f"bpe-300 (sha256 {load_tokenizer(parent.tokenizer).sha256[:12]})" in line
    assert f"byte (sha256 {ByteTokenizer().sha256[:12]})" in line
    assert f"--set data.tokenizer={parent.tokenizer}" in line
    assert not (local.workspace.runs / "other-tokenizer").exists()


def test_a_run_with_a_tokenizer_json_resumes_without_it(local: LocalRuns, tmp_path: Path) -> None:
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    write_tokenizer_json(train_bpe([local.workspace.corpus.read_text()], 290), folder)
    paths = local.trained("own-json", {**SETS, "data.tokenizer": str(folder)})
    shutil.rmtree(folder)
    shutil.rmtree(local.cache)
    local.change(paths, {"train.max_steps": 6})
    assert local.attempt(paths) == 0
    assert local.events(paths)[-1]["step"] == 6


def test_sampling_with_another_tokenizer_is_refused(
    local: LocalRuns, parent: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpuworkbench.tools.sample import main

    copy = RunPaths(tmp_path / "copy")
    shutil.copytree(parent.root, copy.root)
    own = load_tokenizer(copy.tokenizer)
    ByteTokenizer().save(copy.tokenizer)
    request = {"run": str(copy.root), "prompt": "a", "tokens": 2, "temperature": 0.0, "top_k": 0, "seed": 0}
    assert main(msgspec.json.encode(request).decode()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"bpe-300 (sha256 {own.sha256[:12]})" in line
    assert f"byte (sha256 {ByteTokenizer().sha256[:12]})" in line
