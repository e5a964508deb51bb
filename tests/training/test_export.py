"""Exported folders: transformers' models and tokenizers compute what ours do, and a run may start from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gpuworkbench.config.loader import build
from gpuworkbench.config.toml_io import dump_toml, parse_toml
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer, load_tokenizer
from gpuworkbench.errors import ConfigError, DoesNotFitError
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.models import build_model
from gpuworkbench.models.generate import generate
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tools import export as exporter
from gpuworkbench.tools.checkpoint_weights import open_weights
from gpuworkbench.tools.export import ExportRequest, export
from gpuworkbench.tools.sample import choose_checkpoint, load_config, load_model
from gpuworkbench.training.checkpoint import Checkpointer
from gpuworkbench.training.state import ModelState, Progress
from tests.fixtures.faulty_files import FaultyFiles, PowerCut
from tests.fixtures.hf_folders import loaded, resolved
from tests.fixtures.local_run import LocalRuns

transformers = pytest.importorskip("transformers")
REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 8


@pytest.fixture(scope="module", params=["byte", "bpe-300", "larger vocabulary"])
def run(local: LocalRuns, request: pytest.FixtureRequest) -> RunPaths:
    """A trained run: 257 tokens (padded to 320 inside), 300 of a trained BPE, or more than the tokenizer has."""
    sets: dict[str, Any] = {"train.max_steps": STEPS}
    if request.param == "bpe-300":
        sets["data.tokenizer"] = "bpe-300"
    elif request.param == "larger vocabulary":
        sets["model.vocab_size"] = 300
    return local.trained(request.param.replace(" ", "-"), sets)


def exported(run: RunPaths, to: Path, **options: Any) -> Path:
    export(ExportRequest(run=str(run.root), to=str(to), **options))
    return to


def our_model(run: RunPaths) -> Any:
    config = load_config(run)
    return load_model(config, choose_checkpoint(run, None)).eval()


def their_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def test_logits_and_greedy_text_equal_transformers(run: RunPaths, tmp_path: Path) -> None:
    folder = exported(run, tmp_path / "out")
    ours, theirs = our_model(run), their_model(folder)
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    vocab_size = load_config(run).model.vocab_size
    assert theirs.config.vocab_size == theirs.lm_head.weight.shape[0] == vocab_size
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    idx = torch.randint(vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(idx), theirs(idx).logits, rtol=1e-5, atol=1e-5)
    prompt = [84, 104, 101]
    text = list(generate(ours, prompt, 12, temperature=0.0))
    given = torch.tensor([prompt])
    answer = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False)
    assert answer[0].tolist()[3:][: len(text)] == text[: len(answer[0]) - 3]


def test_the_tokenizer_gives_our_ids(run: RunPaths, tmp_path: Path) -> None:
    folder = exported(run, tmp_path / "out")
    ours, theirs = load_tokenizer(run.tokenizer), transformers.AutoTokenizer.from_pretrained(folder)
    text = "The 17 small steps of été 漢字\n\n make a run."
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    published = json.loads((folder / "config.json").read_text())
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert theirs.eos_token_id == published["eos_token_id"] == generation.eos_token_id == ours.eot_id


def test_a_run_starts_from_it_with_the_very_same_weights(run: RunPaths, tmp_path: Path) -> None:
    folder = exported(run, tmp_path / "out", max_shard_bytes=40_000)
    assert (folder / "model.safetensors.index.json").exists()
    again = loaded(resolved(tmp_path, folder))
    ours = our_model(run)
    vocab_size = load_config(run).model.vocab_size
    for (name, a), b in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        rows = vocab_size if name == "wte.weight" else len(a)
        assert torch.equal(a[:rows], b[1][:rows]), name
    idx = torch.randint(vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ours(idx), again(idx))


@pytest.fixture(scope="module")
def small(local: LocalRuns) -> RunPaths:
    """One run for what does not depend on the tokenizer."""
    return local.trained("small", {"train.max_steps": STEPS})


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_the_rounded_value(
    small: RunPaths, tmp_path: Path, dtype: str, expected: torch.dtype
) -> None:
    whole, half = exported(small, tmp_path / "whole"), exported(small, tmp_path / "half", dtype=dtype)
    assert their_model(half).dtype == expected
    tensors = load_file(half / "model.safetensors")
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(tensors[name], tensor.to(expected)), name
    with safe_open(half / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_fp16_cannot_hold_is_refused(small: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_into = exporter.SafetensorsReader.read_into

    def huge(self: Any, tensor: Any, buffer: memoryview) -> None:
        read_into(self, tensor, buffer)
        if tensor.name == "ln_f.weight":
            buffer.cast("f")[0] = 7e4

    monkeypatch.setattr(exporter.SafetensorsReader, "read_into", huge)
    with pytest.raises(ConfigError, match=r"'ln_f\.weight' has values beyond F16"):
        exported(small, tmp_path / "a" / "b", dtype="fp16")
    assert list(tmp_path.iterdir()) == []
    assert exported(small, tmp_path / "bf16", dtype="bf16").is_dir()


def test_the_card_tells_the_runs_facts_and_no_paths(small: RunPaths, tmp_path: Path) -> None:
    card = (exported(small, tmp_path / "out", checkpoint=7) / "README.md").read_text()
    config = load_config(small)
    for fact in ("# small", "| step | 7 of 8 |", f"{config.model.n_params():,} parameters", "`byte`", "`corpus.txt`"):
        assert fact in card
    assert str(config.data.sha256)[:16] in card
    assert str(small.root.parent) not in card
    assert str(tmp_path) not in card


def test_an_earlier_export_is_replaced_and_other_files_stay(small: RunPaths, tmp_path: Path) -> None:
    folder = exported(small, tmp_path / "out", max_shard_bytes=40_000)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        exported(small, folder)
    exported(small, folder, force=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_an_empty_folder_a_link_to_one_and_missing_parents_will_do(small: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    exported(small, tmp_path / "link")
    assert (tmp_path / "empty" / "config.json").exists()
    assert exported(small, tmp_path / "a" / "b" / "c").is_dir()


@pytest.mark.parametrize("kind", ["file", "broken link", "folder in a file's place"])
def test_targets_that_cannot_become_the_folder(small: RunPaths, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "broken link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        (target / "config.json").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"is not a folder|is not a regular file"):
        exported(small, target, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_told_before_anything_is_written(
    small: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "disk_free_bytes", lambda path: 1000)
    with pytest.raises(DoesNotFitError, match=r"the disk at .* has 1000 B free"):
        exported(small, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class MovingFiles(FaultyFiles):
    """Files may move into another folder too. What a disk loses of names is not played here."""

    def rename(self, source: Path, target: Path) -> None:
        if source.parent == target.parent:
            super().rename(source, target)
        else:
            self._operation("rename", f"{source} -> {target}")
            os.rename(source, target)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, which need not be there."""
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def is_complete(folder: Path) -> bool:
    """Whether a program may take it for a model: then every file of it must be whole."""
    return (folder / "config.json").exists()


@pytest.mark.parametrize("place", ["new", "empty", "earlier export"])
def test_it_fails_at_each_operation_and_nothing_half_made_looks_complete(
    small: RunPaths, tmp_path: Path, place: str
) -> None:
    def prepared(name: str) -> Path:
        folder = tmp_path / name / "out"
        folder.parent.mkdir()
        if place == "earlier export":
            shutil.copytree(earlier, folder)
        elif place == "empty":
            folder.mkdir()
        return folder

    def attempt(folder: Path, files: MovingFiles) -> None:
        export(ExportRequest(run=str(small.root), to=str(folder), force=True, max_shard_bytes=60_000), files)

    earlier = exported(small, tmp_path / "earlier", dtype="bf16", checkpoint=7)
    counted = MovingFiles()
    attempt(whole := prepared("whole"), counted)
    expected = contents(whole)
    kinds = [operation.kind for operation in counted.operations]
    # A tensor's write is like the one before it: every tenth will do.
    chosen = [number for number, kind in enumerate(kinds, 1) if kind != "write" or number % 10 == 0]
    for fail_at in chosen:
        for power_cut in (False, True):
            folder = prepared(f"{fail_at}-{power_cut}")
            files = MovingFiles(fail_at=fail_at, power_cut=power_cut)
            try:
                attempt(folder, files)
                assert contents(folder) == expected  # only the clean-up after it failed
            except (PowerCut, OSError):
                if is_complete(folder):
                    assert contents(folder) in (contents(earlier), expected), files.failed
                elif not power_cut:
                    assert not list(folder.parent.rglob(".tmp-*")), files.failed
            assert files.failed is not None
            if power_cut:  # whatever was left, the next export works and clears it away
                attempt(folder, MovingFiles())
                assert contents(folder) == expected
                assert not list(folder.parent.rglob(".tmp-*"))
            shutil.rmtree(folder.parent)


class EndedFiles(MovingFiles):
    """SIGTERM arrives at the `fail_at`-th operation: the exporter's handler raises SystemExit there."""

    def _operation(self, kind: str, subject: str, torn: Any = lambda: None) -> None:
        try:
            super()._operation(kind, subject, torn)
        except OSError:
            raise SystemExit(143) from None


@pytest.mark.parametrize("fail_at", [1, 2, 5, 30, 50])
def test_one_that_is_asked_to_end_takes_everything_back(small: RunPaths, tmp_path: Path, fail_at: int) -> None:
    request = ExportRequest(run=str(small.root), to=str(tmp_path / "a" / "out"))
    files = EndedFiles(fail_at=fail_at, torn=False)
    with pytest.raises(SystemExit):
        export(request, files)
    assert files.failed is not None
    assert list(tmp_path.iterdir()) == []


class TestWhileTraining:
    """Checkpoints come and go while they are exported."""

    def test_a_damaged_newest_one_is_passed_over(self, small: RunPaths, tmp_path: Path) -> None:
        copy = RunPaths(Path(shutil.copytree(small.root, tmp_path / "copy")))
        weights = copy.checkpoint(8) / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        notes: list[str] = []
        opened = open_weights(copy, None, notes.append)
        opened.reader.close()
        assert opened.step == 7
        assert "step-00000008/model.safetensors is damaged" in notes[0]

    def test_one_that_is_retired_meanwhile_is_looked_for_again(
        self, small: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = RunPaths(Path(shutil.copytree(small.root, tmp_path / "copy")))
        from gpuworkbench.tools import checkpoint_weights

        read_manifest, seen = checkpoint_weights.read_manifest, []

        def retiring(directory: Path) -> Any:
            seen.append(directory.name)
            if len(seen) == 1:  # the trainer saved step 9 and retired step 8 since the listing
                shutil.copytree(copy.checkpoint(7), copy.checkpoint(9))
                shutil.rmtree(directory)
            return read_manifest(directory)

        monkeypatch.setattr(checkpoint_weights, "read_manifest", retiring)
        notes: list[str] = []
        opened = open_weights(copy, None, notes.append)
        opened.reader.close()
        assert seen[:2] == ["step-00000008", "step-00000009"]
        assert opened.step == 7  # step 9 is a renamed copy of 7, so it is passed over as damaged

    def test_open_weights_outlive_their_checkpoint(self, small: RunPaths, tmp_path: Path) -> None:
        copy = RunPaths(Path(shutil.copytree(small.root, tmp_path / "copy")))
        opened = open_weights(copy, 8, print)
        shutil.rmtree(copy.checkpoints)
        tensor = opened.reader.tensors[0]
        buffer = bytearray(tensor.num_bytes)
        opened.reader.read_into(tensor, memoryview(buffer))
        opened.reader.close()
        assert any(buffer)


PEAK = """
import resource, sys
from gpuworkbench.tools.export import ExportRequest, export
import torch
torch.set_num_threads(1)
torch.stack(torch.aminmax(torch.zeros(8).to(torch.bfloat16)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export(ExportRequest(run=sys.argv[1], to=sys.argv[2], dtype="bf16", max_shard_bytes=20_000_000))
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_exporting_needs_one_tensor_at_a_time(local: LocalRuns, tmp_path: Path) -> None:
    """A checkpoint of 110 MB whose largest tensors have 9.4 MB: the peak stays far below the checkpoint."""
    run = RunPaths(Path(shutil.copytree(local.create("wide").root, tmp_path / "wide")))
    table = parse_toml(run.run_toml.read_bytes(), "run.toml")
    sizes = {"n_layer": 4, "n_head": 8, "n_embd": 768, "vocab_size": 257}
    config = build({**table, "model": {**table["model"], **sizes}}, "run.toml")
    run.run_toml.write_bytes(dump_toml(config))
    run.tokenizer.mkdir()
    ByteTokenizer().save(run.tokenizer)
    events = EventWriter(run.events, attempt=1)
    parts: dict[str, Any] = {"model": ModelState(build_model(config.model, seed=0)), "progress": Progress()}
    Checkpointer(run, parts, events, keep_last=2, keep_best=False).save(1, best_step=None, wait=True)
    events.close()
    result = subprocess.run(
        [sys.executable, "-c", PEAK, run.root, tmp_path / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=120,
        check=True,
    )
    before, after = (int(word) * 1024 for word in result.stdout.split())
    total = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert total > 50_000_000
    assert after - before < 40_000_000, f"{(after - before) / 1e6:.0f} MB for tensors of at most 9.4 MB"
