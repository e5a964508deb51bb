"""Fine-tuning from a Hugging Face folder through the real command line: start, resume without the folder, export."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

from gpuworkbench.commands import export as command
from gpuworkbench.data.tokenization.tokenizer import load_tokenizer
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.tools.sample import load_config
from gpuworkbench.training.attempt import load_same_tokens
from gpuworkbench.training.batches import TrainBatches
from tests.fixtures.hf_folders import change_tensors, gpt2, save_gpt2
from tests.fixtures.local_run import LocalRuns
from tests.fixtures.processes import end, no_orphans, start_endless
from tests.fixtures.tiny_run import Workspace, wait_until

transformers = pytest.importorskip("transformers")
PRESET = """\
schema_version = 1

[model]
family = "gpt2"

[data]
source = "{source}"

[train]
seq_len = 16
micro_batch_size = 2
max_steps = 6
threads = 1

[optimizer]
lr = 1e-3

[checkpoint]
interval_steps = 4

[eval]
interval_steps = 0

[device]
kind = "cpu"
"""


def train_tokenizer(folder: Path, text: str) -> int:
    """A tokenizer.json as transformers saves it; returns its vocabulary's size."""
    import tokenizers

    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator([text], vocab_size=300, special_tokens=["<|endoftext|>"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    return len(fast)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("finetune"), PRESET)


@pytest.fixture(scope="module")
def folder(workspace: Workspace) -> Path:
    """A tiny GPT-2 with a tokenizer of its own; its vocabulary is larger than the tokenizer's."""
    path = workspace.root / "published"
    path.mkdir()
    vocab_size = train_tokenizer(path, workspace.corpus.read_text())
    return save_gpt2(path, gpt2(vocab_size=vocab_size + 7, bos_token_id=0, eos_token_id=0))


def first_batch(run: RunPaths) -> tuple[torch.Tensor, torch.Tensor]:
    config = load_config(run)
    data = load_same_tokens(config)
    batches = TrainBatches(
        data.tokens("train"), config.train_seq_len, config.data.seed, config.train.micro_batch_size, torch.device("cpu")
    )
    x, y = batches.at(0)[:2]
    return x, y


def test_from_a_folder_to_a_folder(
    workspace: Workspace, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", workspace.environ["GPUWORKBENCH_CACHE_DIR"])
    copy = Path(shutil.copytree(folder, tmp_path / "given"))
    started = workspace.train("tuned", "--set", f"train.init_from={copy}", "--set", f"data.tokenizer={copy}")
    assert started.returncode == 0, started.stderr
    assert f"started from 28 tensors in {copy}, stored as F32" in started.stdout
    run = RunPaths(workspace.runs / "tuned")
    events = workspace.events("tuned")
    begun = events[0]
    assert (begun["init_from"], begun["init_tensors"], begun["init_dtypes"]) == (str(copy), 28, ["F32"])
    assert [event for event in events if event["type"] == "warning"] == []  # the first loss is not near ln V

    x, y = first_batch(run)
    reference = transformers.AutoModelForCausalLM.from_pretrained(copy, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(reference(x).logits.flatten(0, 1), y.flatten())
    losses = workspace.losses("tuned")
    assert losses[1] == pytest.approx(expected.item(), abs=1e-5)
    assert losses[6] < losses[1]

    shutil.rmtree(copy)
    resumed = workspace.resume("tuned", "--steps", "8")
    assert resumed.returncode == 0, resumed.stderr
    assert "started from" not in resumed.stdout
    out = tmp_path / "out"
    exported = workspace.call("export", "tuned", "--to", str(out), "--json")
    assert exported.returncode == 0, exported.stderr
    answer = json.loads(exported.stdout)
    assert (answer["step"], answer["n_tensors"], answer["path"]) == (8, 28, str(out))
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "The 5 small steps"
    assert tokenizer(text)["input_ids"] == load_tokenizer(run.tokenizer).encode(text)
    assert model.config.vocab_size == reference.config.vocab_size


def test_values_that_only_the_trainer_sees_leave_no_run_either(
    workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "given"))
    change_tensors(copy, lambda t: {**t, "transformer.ln_f.bias": torch.full((32,), torch.nan)})
    result = workspace.train("refused", "--set", f"train.init_from={copy}", "--set", "data.tokenizer=byte")
    assert result.returncode == 2
    assert "tensor 'ln_f.bias' holds NaN or Inf" in result.stdout + result.stderr
    assert not (workspace.runs / "refused").exists()


class TestExporting:
    """`gpuworkbench export` as a person meets it."""

    @pytest.fixture(scope="class")
    def run(self, local: LocalRuns) -> RunPaths:
        return local.trained("plain", {"train.max_steps": 2})

    def test_people_read_what_was_written_and_how_to_go_on(self, local: LocalRuns, run: RunPaths) -> None:
        result = local.workspace.call("export", "plain", "--to", "exports/first")
        assert (result.returncode, result.stderr) == (0, "")
        folder = local.workspace.root / "exports" / "first"
        assert f"step 2 of plain is in {folder}" in result.stdout
        assert f"--set train.init_from={folder} --set data.tokenizer={folder}" in result.stdout
        assert (folder / "config.json").exists()

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("nothing", "--to", "x"), 2, "nothing"),
            (("plain",), 2, "required: --to"),
            (("plain", "--to", ""), 2, "--to is not the name of a folder"),
            (("plain", "--to", "x", "--dtype", "int8"), 2, "int8"),
            (("plain", "--to", "x", "--max-shard-size", "big"), 2, "'big' is not a size such as 5GB"),
            (("plain", "--to", "runs"), 2, "runs is not empty"),
            (("plain", "--to", "corpus.txt/x"), 1, "corpus.txt/x cannot be written"),
        ],
    )
    def test_refusals_are_one_line_and_write_nothing(
        self, local: LocalRuns, run: RunPaths, arguments: tuple[str, ...], code: int, message: str
    ) -> None:
        root = local.workspace.root
        before = sorted(path.name for path in root.iterdir())
        result = local.workspace.call("export", *arguments)
        assert result.returncode == code
        (line,) = result.stderr.splitlines()
        assert message in line
        assert result.stdout == ""
        assert sorted(path.name for path in root.iterdir()) == before

    def test_a_run_that_trains_is_exported(self, local: LocalRuns) -> None:
        workspace = local.workspace
        with no_orphans(workspace.root):
            start_endless(workspace, "busy", "--set", "checkpoint.interval_steps=2")
            wait_until(lambda: "checkpoint_saved" in str(workspace.events("busy")), what="a checkpoint")
            result = workspace.call("export", "busy", "--to", "busy-export", "--json")
            end(workspace, "busy")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["step"] >= 2

    def test_ctrl_c_lets_the_exporter_take_back_what_it_wrote(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The exporter is played by a process that says when it has begun and when it was asked to end."""
        begun, ended = tmp_path / "begun", tmp_path / "ended"
        script = (
            "import pathlib, signal, sys\n"
            f"def end(*_): pathlib.Path({str(ended)!r}).touch(); sys.exit(143)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            f"pathlib.Path({str(begun)!r}).touch()\n"
            "while True: signal.pause()\n"
        )
        monkeypatch.setattr(command, "torch_command", lambda *arguments: [sys.executable, "-c", script])

        def interrupt() -> None:
            wait_until(begun.exists, what="exporter")
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            command.ask_exporter({})
        assert ended.exists()
