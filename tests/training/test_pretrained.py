"""Starting from published GPT-2 weights: equal logits, sizes from config.json, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpuworkbench.config.families.gpt2 import Gpt2Config
from gpuworkbench.config.loader import Override
from gpuworkbench.config.toml_io import dump_toml
from gpuworkbench.data import load_same_tokens
from gpuworkbench.errors import ConfigError, DataError, WorkbenchError
from gpuworkbench.hf.folder import describe, identity_of, weight_files
from gpuworkbench.hf.gpt2 import LAYOUT
from gpuworkbench.launch.fork import fork
from gpuworkbench.models import build_on_meta
from gpuworkbench.training.attempt import load_run_config
from gpuworkbench.training.pretrained import load_pretrained, make_model
from gpuworkbench.training.trial import train_trial, with_rate
from tests.fixtures.hf_folders import (
    METADATA,
    change_config,
    change_tensors,
    gpt2,
    loaded,
    reference_logits,
    resolved,
    save_gpt2,
)
from tests.fixtures.local_run import LocalRuns, final_tensors, killed

REPOSITORY = Path(__file__).resolve().parents[2]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(published, tmp_path / "folder"))


def ids(vocab_size: int, length: int = 24) -> torch.Tensor:
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def assert_equal_logits(folder: Path, config: Any) -> None:
    idx = ids(config.model.vocab_size)
    with torch.no_grad():
        ours = loaded(config)(idx)
    torch.testing.assert_close(ours, reference_logits(folder, idx), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="tiny"),
        pytest.param({"vocab_size": 320}, id="vocabulary a multiple of 64"),
        pytest.param({"n_layer": 1, "n_head": 1, "n_embd": 48, "n_positions": 40}, id="one head"),
        pytest.param({"n_layer": 3, "n_head": 12, "n_embd": 96, "vocab_size": 1000}, id="many heads"),
        pytest.param({"activation_function": "gelu_pytorch_tanh"}, id="another name of GELU's tanh form"),
        pytest.param({"n_inner": 128}, id="n_inner spelt out"),
        pytest.param({"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}, id="dropout is ours"),
    ],
)
def test_logits_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = save_gpt2(tmp_path / "model", gpt2(**changes))
    config = resolved(tmp_path, folder)
    sizes = json.loads((folder / "config.json").read_text())
    for ours, theirs in {"n_layer": "n_layer", "n_head": "n_head", "seq_len": "n_positions"}.items():
        assert getattr(config.model, ours) == sizes[theirs]
    assert config.model.dropout == 0.0
    assert config.train.seq_len is None
    assert_equal_logits(folder, config)


@pytest.mark.slow
def test_logits_and_count_at_the_published_size(tmp_path: Path) -> None:
    """124,439,808 parameters with random values: the published shape without the published file."""
    folder = save_gpt2(tmp_path / "small", gpt2(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12))
    config = resolved(tmp_path, folder)
    assert config.model == Gpt2Config(vocab_size=50257)
    assert config.model.n_params() == 124_439_808
    idx = ids(50257, 16)
    with torch.no_grad():
        ours = loaded(config)(idx)
    # Logits here are of the order of 10; two libraries add 768 products in different orders.
    torch.testing.assert_close(ours, reference_logits(folder, idx), rtol=1e-4, atol=1e-4)


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_head(tensors: Tensors) -> Tensors:
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}


def with_masks(tensors: Tensors) -> Tensors:
    """The buffers of old files."""
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.bool) for layer in range(2)}
    return {**without_prefix(tensors), **masks, "h.0.attn.masked_bias": torch.tensor(-1e4)}


@pytest.mark.parametrize("variant", [without_prefix, with_head, with_masks])
def test_names_as_different_programs_write_them(
    folder: Path, tmp_path: Path, variant: Callable[[Tensors], Tensors]
) -> None:
    change_tensors(folder, variant)
    assert_equal_logits(folder, resolved(tmp_path, folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_fp32_parameters(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    change_tensors(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    config = resolved(tmp_path, folder)
    model = loaded(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_equal_logits(folder, config)


def test_shards_and_their_index(tmp_path: Path, published: Path) -> None:
    model = gpt2()
    sharded = save_gpt2(tmp_path / "sharded", model, max_shard_size="40KB")
    assert len(weight_files(sharded)) > 2
    whole, parts = resolved(tmp_path, published), resolved(tmp_path, sharded)
    for a, b in zip(loaded(whole).parameters(), loaded(parts).parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.train.init_sha256 != parts.train.init_sha256


def test_padding_rows_are_zero_and_every_parameter_is_given_a_value(folder: Path, tmp_path: Path) -> None:
    config = resolved(tmp_path, folder)
    model = make_model(config, torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    counted = load_pretrained(model, config)
    assert (counted.n_tensors, counted.n_params, counted.dtypes) == (28, config.model.n_params(), ("F32",))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.head_weight.shape[0] == 320
    assert torch.count_nonzero(model.head_weight[257:]) == 0


@pytest.mark.parametrize("name", ["tiny", "small", "medium", "xl"])
def test_rules_name_every_parameter_once(name: str) -> None:
    sizes = {
        "tiny": Gpt2Config(n_layer=2, n_head=2, n_embd=32, seq_len=16, vocab_size=100),
        "small": Gpt2Config(vocab_size=50257),
        "medium": Gpt2Config(n_layer=24, n_head=16, n_embd=1024, vocab_size=50257),
        "xl": Gpt2Config(n_layer=48, n_head=25, n_embd=1600, vocab_size=50257),
    }
    config = sizes[name]
    rules = [rule for rule in LAYOUT.tensors(config) if not rule.is_copy]
    parameters = dict(build_on_meta(config).named_parameters())
    assert sorted(rule.ours for rule in rules) == sorted(parameters)
    assert sum(torch.Size(rule.shape).numel() for rule in rules) == config.n_params()
    for rule in rules:
        ours = tuple(parameters[rule.ours].shape)
        shape = rule.shape[::-1] if rule.is_transposed else rule.shape
        assert ours == shape or (rule.ours == "wte.weight" and ours[1:] == shape[1:])


class TestSizes:
    """Who decides the model's sizes."""

    def test_a_size_that_agrees_may_be_written(self, folder: Path, tmp_path: Path) -> None:
        config = resolved(tmp_path, folder, model__n_layer=2, model__vocab_size=257, model__dropout=0.2)
        assert (config.model.n_layer, config.model.vocab_size, config.model.dropout) == (2, 257, 0.2)

    @pytest.mark.parametrize(
        ("key", "value", "theirs"),
        [
            ("n_layer", 3, "n_layer = 2"),
            ("n_head", 4, "n_head = 2"),
            ("n_embd", 64, "n_embd = 32"),
            ("seq_len", 16, "n_positions = 32"),
            ("vocab_size", 512, "vocab_size = 257"),
        ],
    )
    def test_a_size_that_disagrees_is_refused_naming_both(
        self, folder: Path, tmp_path: Path, key: str, value: int, theirs: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            resolved(tmp_path, folder, **{f"model__{key}": value})
        assert f"--set: model.{key} = {value}, but {folder} has {theirs}" in caught.value.line()

    def test_other_rules_are_checked_with_the_folders_sizes(self, folder: Path, tmp_path: Path) -> None:
        assert resolved(tmp_path, folder, model__n_head=2, train__seq_len=32).train_seq_len == 32
        with pytest.raises(ConfigError, match="33 tokens are more than the model's 32 positions"):
            resolved(tmp_path, folder, train__seq_len=33)

    def test_zero_takes_the_folders_vocabulary(self, folder: Path, tmp_path: Path) -> None:
        assert resolved(tmp_path, folder, model__vocab_size=0).model.vocab_size == 257

    def test_the_path_is_stored_absolute_and_the_identity_is_the_files(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder.parent)
        config = resolved(tmp_path, "folder")
        assert config.train.init_from == str(folder)
        output = subprocess.run(["sha256sum", folder / "model.safetensors"], capture_output=True, text=True, check=True)
        assert config.train.init_sha256 == output.stdout.split()[0]


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, "model_type = 'llama' is not supported; choices: gpt2"),
    ({"model_type": None}, "model_type = None is not supported"),
    ({"activation_function": "relu"}, "activation_function = 'relu' is not supported"),
    ({"activation_function": "gelu"}, "activation_function = 'gelu' is not supported"),
    ({"activation_function": ["gelu_new"]}, "activation_function = "),
    ({"n_inner": 64}, "n_inner = 64 is not supported, only 4 x n_embd = 128"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06 is not supported, only 1e-05"),
    ({"scale_attn_weights": False}, "scale_attn_weights = False is not supported"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
    ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True is not supported"),
    ({"add_cross_attention": True}, "add_cross_attention = True is not supported"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings = False is not supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights are not supported"),
    ({"n_layer": "2"}, "n_layer is not a positive whole number"),
    ({"n_layer": True}, "n_layer is not a positive whole number"),
    ({"n_embd": 0}, "n_embd is not a positive whole number"),
    ({"hidden_size": 64}, "n_embd = 32, but hidden_size = 64"),
    ({"n_head": 5}, "5 heads do not divide n_embd = 32"),
    ({"n_layer": 2000}, "model.n_layer = 2000 is not a whole number from 1 to 1024"),
    ({"n_layer": 3}, "tensor 'h.2.ln_1.weight' is missing (12 such)"),
    ({"n_layer": 1}, "does not belong to a gpt2 of this size"),
    ({"n_positions": 64}, "has shape [32, 32], config.json makes it [64, 32]"),
    ({"vocab_size": 258}, "has shape [257, 32], config.json makes it [258, 32]"),
]


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED, ids=[str(changes) for changes, _ in UNSUPPORTED])
def test_configs_that_mean_something_else_are_refused_by_key(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(folder, **changes)
    assert message in refusal(tmp_path, folder)


def test_a_config_with_the_other_names_of_the_sizes(folder: Path, tmp_path: Path) -> None:
    aliases = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "max_position_embeddings": 32}
    change_config(folder, **aliases, n_layer=None, n_head=None, n_embd=None, n_positions=None)
    assert_equal_logits(folder, resolved(tmp_path, folder))


def refusal(tmp_path: Path, init_from: object) -> str:
    """The one line that starting there is refused with, at launch or by the trainer."""
    with pytest.raises(ConfigError) as caught:
        loaded(resolved(tmp_path, init_from))
    line = caught.value.line()
    assert line.isprintable()
    assert caught.value.hint
    return line


SPOILT: list[tuple[Callable[[Tensors], Tensors], str]] = [
    (lambda t: {k: v for k, v in t.items() if "wpe" not in k}, "tensor 'wpe.weight' is missing"),
    (lambda t: {**t, "score.weight": torch.zeros(2)}, "tensor 'score.weight' does not belong to a gpt2"),
    (lambda t: {**t, "transformer.h.0.crossattention.c_attn.weight": torch.zeros(2)}, "does not belong"),
    (lambda t: {**t, "wte.weight": t["transformer.wte.weight"]}, "tensor 'wte.weight' is there twice"),
    (lambda t: {**t, "transformer.ln_f.bias": torch.zeros(31)}, "'transformer.ln_f.bias' has shape [31]"),
    (lambda t: {k: v.t().contiguous() if "c_attn.weight" in k else v for k, v in t.items()}, "has shape [96, 32]"),
    (lambda t: {**t, "transformer.ln_f.bias": torch.zeros(32, dtype=torch.float64)}, "is F64"),
    (lambda t: {**t, "transformer.ln_f.bias": torch.zeros(32, dtype=torch.int8)}, "is I8"),
    (lambda t: {**t, "transformer.ln_f.bias": torch.full((32,), torch.nan)}, "'ln_f.bias' holds NaN or Inf"),
    (lambda t: {**t, "transformer.h.1.mlp.c_fc.weight": torch.full((32, 128), torch.inf)}, "holds NaN or Inf"),
    (lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"] + 1}, "lm_head.weight and wte.weight differ"),
    (lambda t: {**t, "lm_head.weight": torch.zeros(2, 2)}, "'lm_head.weight' has shape [2, 2]"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=[message for _, message in SPOILT])
def test_tensors_that_do_not_belong_there_are_refused_by_name(
    folder: Path, tmp_path: Path, spoil: Callable[[Tensors], Tensors], message: str
) -> None:
    change_tensors(folder, spoil)
    assert message in refusal(tmp_path, folder)


def _spoil_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _index(content: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _longer(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")


def _fifo(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def _fifo_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _loop(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")


def _run_folder(folder: Path) -> None:
    (folder / "config.json").rename(folder / "run.toml")


HOSTILE: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), "config.json is not there"),
    ("config is no JSON", _spoil_file("config.json", b"{"), "config.json is not JSON"),
    ("config is a list", _spoil_file("config.json", b"[]"), "config.json is not a JSON object"),
    ("config is deep", _spoil_file("config.json", b"[" * 100_000), "config.json is not JSON"),
    ("config is huge", _spoil_file("config.json", b" " * 2**21), "larger than"),
    ("config is no UTF-8", _spoil_file("config.json", b'{"a": "\xff"}'), "config.json is not JSON"),
    ("config is a pipe", _fifo_config, "not a regular file"),
    ("a run instead", _run_folder, "it is a run: gpuworkbench export folder --to DIR"),
    ("pickle", _pickle, "pytorch_model.bin is a pickle"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    ("weights are empty", _spoil_file("model.safetensors", b""), "no intact safetensors file"),
    ("weights are a page", _spoil_file("model.safetensors", b"<html>" * 99), "no intact safetensors file"),
    ("header length of 2**63", _spoil_file("model.safetensors", b"\xff" * 64), "no intact safetensors file"),
    ("truncated", _truncate, "no intact safetensors file"),
    ("longer", _longer, "no intact safetensors file"),
    ("weights are a pipe", _fifo, "not a regular file"),
    ("weights are a loop", _loop, "Too many levels of symbolic links"),
    ("index is no JSON object", _index([]), "is not a JSON object"),
    ("index without files", _index({"weight_map": {}}), "names no files"),
    ("index of a list", _index({"weight_map": ["a"]}), "names no files"),
    ("index leads out", _index({"weight_map": {"a": "../model.safetensors"}}), "not a .safetensors file beside it"),
    ("index names a pickle", _index({"weight_map": {"a": "model.bin"}}), "not a .safetensors file beside it"),
    ("index names a number", _index({"weight_map": {"a": 1}}), "not a .safetensors file beside it"),
    ("shard is missing", _index({"weight_map": {"a": "model-1.safetensors"}}), "No such file"),
]


@pytest.mark.parametrize(("spoil", "message"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_folders_that_are_none_are_refused_in_one_line(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    assert message in refusal(tmp_path, folder)


def test_paths_that_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path, tmp_path / "nothing")
    assert "is not a folder" in refusal(tmp_path, folder / "config.json")
    assert "name the folder that it lies in" in refusal(tmp_path, folder / "model.safetensors")
    assert "there is no such user" in refusal(tmp_path, "~nobody-of-that-name/x")
    assert "is not there" in refusal(tmp_path, "a\0b")
    (folder / "closed").symlink_to(folder)
    assert describe(folder / "closed").layout is LAYOUT


def test_weights_that_changed_since_the_run_was_created(folder: Path, tmp_path: Path) -> None:
    config = resolved(tmp_path, folder)
    change_tensors(folder, lambda t: {**t, "transformer.ln_f.bias": t["transformer.ln_f.bias"] + 1})
    with pytest.raises(ConfigError, match=re.escape(f"{config.train.init_sha256[:12]} then")):
        loaded(config)
    shutil.rmtree(folder)
    with pytest.raises(WorkbenchError, match="No such file"):
        loaded(config)


class TestRuns:
    """Whole runs, trained here; the tiny preset writes the sizes that the folder has."""

    def test_it_is_saved_before_the_first_step_and_never_needs_the_folder_again(
        self, local: LocalRuns, folder: Path
    ) -> None:
        sets = {"train.init_from": str(folder), "train.max_steps": 5}
        whole = local.trained("whole", sets)
        paths = local.create("killed", sets)
        killed(local.open(paths), 2)
        assert [event["step"] for event in local.events(paths, "checkpoint_saved")] == [0]
        shutil.rmtree(folder)
        assert local.attempt(paths) == 0
        assert local.losses(paths) == local.losses(whole)
        assert final_tensors(paths, 5) == final_tensors(whole, 5)
        started, resumed = local.events(paths, "run_started", "run_resumed")
        assert (started["init_from"], started["init_tensors"]) == (str(folder), 28)
        assert resumed["init_from"] is None
        assert local.events(paths, "warning") == []

    def test_a_trial_starts_from_them_too(self, local: LocalRuns, folder: Path) -> None:
        sets = {"train.init_from": str(folder), "train.max_steps": 3, "eval.interval_steps": 3}
        run = local.trained("run", sets)
        config, _ = load_run_config(run)
        result = train_trial(with_rate(config, config.optimizer.lr, config.train.seed), load_same_tokens(config))
        assert result.losses == list(local.losses(run).values())

    def test_one_that_died_before_it_was_saved_says_what_is_missing(self, local: LocalRuns, folder: Path) -> None:
        paths = local.create("early", {"train.init_from": str(folder)})
        shutil.rmtree(folder)
        assert local.attempt(paths) == 2
        (error,) = local.events(paths, "error")
        assert str(folder) in error["message"]

    def test_random_weights_are_a_different_run(self, local: LocalRuns, folder: Path) -> None:
        started = local.trained("from-folder", {"train.init_from": str(folder), "train.max_steps": 1})
        random = local.trained("from-random", {"train.init_from": "", "train.max_steps": 1})
        assert local.losses(started)[1] != local.losses(random)[1]
        assert local.events(random, "run_started")[0]["init_from"] is None

    def test_a_run_keeps_the_start_it_had(self, local: LocalRuns, folder: Path) -> None:
        paths = local.trained("kept", {"train.init_from": str(folder), "train.max_steps": 2})
        with pytest.raises(ConfigError, match=r"train\.init_from: .* would make it another run"):
            local.change(paths, {"train.init_from": ""})
        with pytest.raises(ConfigError, match=r"a fork starts from its checkpoint"):
            fork(paths, local.workspace.runs, sets=[Override("train.init_from", "", "--set")], environ={})
        shutil.rmtree(folder)
        child = fork(paths, local.workspace.runs, sets=[Override("optimizer.lr", 1e-4, "--set")], steps=3, environ={})
        assert local.attempt(child) == 0
        assert sorted(local.losses(child)) == [3]

    def test_a_larger_tokenizer_than_the_weights_have_is_refused(self, local: LocalRuns, folder: Path) -> None:
        with pytest.raises(DataError, match=r"model\.vocab_size is 257, the tokenizer 'bpe-300' has 300") as caught:
            local.create("mismatch", {"train.init_from": str(folder), "data.tokenizer": "bpe-300"})
        assert caught.value.hint == "choose the tokenizer that belongs to the weights"


STREAM = """
import resource, sys
from pathlib import Path
import torch
from gpuworkbench.config.toml_io import parse_toml
from gpuworkbench.config.loader import build
from gpuworkbench.training.pretrained import load_pretrained, make_model

config = build(parse_toml(Path(sys.argv[1]).read_bytes(), "run.toml"), "run.toml")
torch.set_num_threads(1)
model = make_model(config, torch.device("cpu"))
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()  # in memory, every page
torch.stack(torch.aminmax(torch.zeros(8)))  # what loads code is loaded before the measurement
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_pretrained(model, config)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_loading_needs_no_second_copy(tmp_path: Path) -> None:
    """Eight shards of about 20 MB: the peak above the model's own memory stays below one shard."""
    sizes = {"vocab_size": 2000, "n_positions": 128, "n_embd": 512, "n_layer": 13, "n_head": 8}
    config = Gpt2Config(n_layer=13, n_head=8, n_embd=512, seq_len=128, vocab_size=2000)
    folder = tmp_path / "sharded"
    folder.mkdir()
    published = {"model_type": "gpt2", **sizes}
    (folder / "config.json").write_text(json.dumps(published))
    shard_bytes = 21_000_000
    weight_map: dict[str, str] = {}
    pending: Tensors = {}
    rules = [rule for rule in LAYOUT.tensors(config) if not rule.is_copy]
    for rule in rules:
        pending[rule.published] = torch.full(rule.shape, 0.01)
        if sum(tensor.nbytes for tensor in pending.values()) > shard_bytes - 4_200_000 or rule is rules[-1]:
            name = f"model-{len(set(weight_map.values())):05d}.safetensors"
            save_file(pending, folder / name, metadata=METADATA)
            weight_map |= dict.fromkeys(pending, name)
            pending = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = weight_files(folder)
    assert max(path.stat().st_size for path in files) < shard_bytes
    run_toml = tmp_path / "run.toml"
    run_toml.write_bytes(dump_toml(resolved(tmp_path, folder)))
    result = subprocess.run(
        [sys.executable, "-c", STREAM, run_toml],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=120,
        check=True,
    )
    before, after = (int(word) * 1024 for word in result.stdout.split())
    total = sum(path.stat().st_size for path in files)
    assert total > 150_000_000
    assert after - before < shard_bytes, f"{(after - before) / 1e6:.0f} MB above the model"


def test_the_identity_of_several_files_is_that_of_their_list(tmp_path: Path) -> None:
    for name, content in {"b": b"2", "a": b"1"}.items():
        (tmp_path / name).write_bytes(content)
    listed = subprocess.run(
        "sha256sum a b | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert identity_of([tmp_path / "b", tmp_path / "a"]) == listed.stdout.split()[0]
