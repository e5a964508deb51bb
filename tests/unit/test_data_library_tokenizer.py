"""`data.tokenizer` as a path: the library's own ids, stored with a run, and bad files refused in one line."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import json.decoder
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from gpuworkbench.data import Tokenizer, absolute_paths, load_tokenizer, prepare
from gpuworkbench.data.checks import load_same_tokens
from gpuworkbench.data.tokenization import tokenizer_files as files_module
from gpuworkbench.data.tokenization.bpe import train_bpe
from gpuworkbench.data.tokenization.text_stream import TextStream
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer
from gpuworkbench.data.tokenization.tokenizer_export import write_tokenizer_json
from gpuworkbench.data.tokenization.tokenizer_files import open_tokenizer
from gpuworkbench.errors import DataError
from tests.fixtures.data_configs import data_config
from tests.fixtures.hub_server import HubServer

KINDS = ("byte_level", "metaspace_bpe", "unigram", "wordpiece")
TEXT = "".join(f"Line {number} of a text that is long enough to be split, née 漢字.\n" for number in range(300))


@cache
def texts() -> tuple[str, ...]:
    """Real code and prose, some 100 kB."""
    modules = (argparse, ast, inspect, json.decoder, tarfile, topics)
    return tuple(inspect.getsource(module)[:20_000] for module in modules)


def specials(*contents: str) -> list[AddedToken]:
    return [AddedToken(content, special=True, normalized=False) for content in contents]


@cache
def library_json(kind: str) -> str:
    """A tokenizer.json of each kind, with a template that adds tokens, truncation and padding: none may matter."""
    made: tokenizers.Tokenizer
    match kind:
        case "byte_level":
            made = tokenizers.Tokenizer(models.BPE())
            made.normalizer = normalizers.NFC()
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            trainer: Any = trainers.BpeTrainer(
                vocab_size=900, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
            )
        case "metaspace_bpe":  # as Llama's: spaces written, bytes where no token fits
            made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            made.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
            bytes_ = [f"<0x{value:02X}>" for value in range(256)]
            trainer = trainers.BpeTrainer(
                vocab_size=900,
                special_tokens=["<unk>", *bytes_],
                initial_alphabet=list("▁abcdefghijklmnopqrstuvwxyz\n"),
                limit_alphabet=120,
                show_progress=False,
            )
        case "unigram":
            made = tokenizers.Tokenizer(models.Unigram())
            made.normalizer = normalizers.NFKC()
            made.pre_tokenizer = pre_tokenizers.Metaspace()
            made.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=600, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
            )
        case _:
            made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
            made.normalizer = normalizers.BertNormalizer()
            made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            made.decoder = decoders.WordPiece()
            trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=["[UNK]"], show_progress=False)
    made.train_from_iterator([text[:15_000] for text in texts()], trainer)
    made.add_special_tokens(specials("<s>", "</s>", "<|im_start|>"))
    made.add_tokens(["gradient_norm", "    "])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
    )
    made.enable_truncation(7)
    made.enable_padding(length=9, pad_id=0, pad_token="<unk>")
    return str(made.to_str())


def refusal(path: Path, eot_token: str | None = None) -> str:
    """The one line that opening `path` is refused with."""
    with pytest.raises(DataError) as caught:
        open_tokenizer(path, eot_token)
    return caught.value.line()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    """A model folder as transformers saves it."""
    path = tmp_path / "Model-1"
    path.mkdir()
    (path / "tokenizer.json").write_text(library_json(kind))
    (path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "chat_template": "{{ x }}"}')
    return path


@cache
def opened(kind: str) -> Tokenizer:
    content = library_json(kind).encode()
    from gpuworkbench.data.tokenization.library_tokenizer import LibraryTokenizer

    return LibraryTokenizer(kind, content, eot_id=reference(kind).token_to_id("</s>"))


@cache
def reference(kind: str) -> tokenizers.Tokenizer:
    """The library itself, told to add and to cut nothing and to read special tokens as text."""
    library = tokenizers.Tokenizer.from_str(library_json(kind))
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def test_ids_are_the_library_s_own(folder: Path, kind: str) -> None:
    ours = open_tokenizer(folder)
    assert (ours.name, ours.eot_id) == ("Model-1", reference(kind).token_to_id("</s>"))
    assert ours.vocab_size == reference(kind).get_vocab_size(with_added_tokens=True)
    for text, ids in zip(texts(), ours.encode_batch(texts()), strict=True):
        assert ids.tolist() == reference(kind).encode(text, add_special_tokens=False).ids
        assert ids.dtype == np.uint32
        assert ours.decode(ids) == reference(kind).decode(ids.tolist(), skip_special_tokens=False)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.text(alphabet="ab </s>|im_start><gradient_norm\n", max_size=40)))
def test_ids_on_any_unicode(text: str) -> None:
    for kind in KINDS:
        ids = opened(kind).encode(text)
        assert ids == reference(kind).encode(text, add_special_tokens=False).ids
        assert isinstance(opened(kind).decode(ids), str)


@pytest.mark.parametrize("special", ["<s>", "</s>", "<|im_start|>"])
def test_special_tokens_in_text_are_ordinary_and_added_ones_are_not(kind: str, special: str) -> None:
    tokenizer, library = opened(kind), reference(kind)
    assert library.token_to_id(special) not in tokenizer.encode(f"a {special} b")
    assert library.token_to_id("gradient_norm") in tokenizer.encode("a gradient_norm b")


def test_decode_never_raises(kind: str) -> None:
    tokenizer = opened(kind)
    assert tokenizer.decode([-1, tokenizer.vocab_size, 2**40]) == "\ufffd" * 3
    assert tokenizer.decode(np.array([], dtype=np.int64)) == ""
    rng = np.random.default_rng(0)
    assert isinstance(tokenizer.decode(rng.integers(-5, tokenizer.vocab_size + 64, 3000)), str)
    assert isinstance(tokenizer.decode(tokenizer.encode("a\ud800b")), str)


def test_it_is_stored_whole(folder: Path, tmp_path: Path) -> None:
    ours = open_tokenizer(folder)
    kept = tmp_path / "kept"
    kept.mkdir()
    ours.save(kept)
    shutil.rmtree(folder)
    for again in (load_tokenizer(kept), open_tokenizer(kept)):
        assert (again.sha256, again.name, again.eot_id) == (ours.sha256, ours.name, ours.eot_id)
        assert again.encode(TEXT) == ours.encode(TEXT)


def test_export_gives_back_what_came(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer_json(open_tokenizer(folder), out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((folder / name).read_text())


def test_ours_exported_and_read_again_have_the_same_ids(tmp_path: Path) -> None:
    for ours in (ByteTokenizer(), train_bpe([TEXT], 400)):
        write_tokenizer_json(ours, tmp_path)
        again = open_tokenizer(tmp_path / "tokenizer.json")
        assert (again.vocab_size, again.eot_id) == (ours.vocab_size, ours.eot_id)
        assert again.encode(texts()[0]) == ours.encode(texts()[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"eos_token": "</s>"}'),
        ("tokenizer_config.json", '{"eos_token": {"content": "</s>", "lstrip": false}}'),
        ("special_tokens_map.json", '{"eos_token": "</s>"}'),
        ("generation_config.json", '{"eos_token_id": ID}'),
        ("generation_config.json", '{"eos_token_id": [ID, 3]}'),
        ("config.json", '{"eos_token_id": ID, "model_type": "gpt2"}'),
        ("config.json", '{"text_config": {"eos_token_id": ID}}'),
    ],
)
def test_which_token_ends_a_text_is_read_from_the_folder(name: str, content: str, tmp_path: Path) -> None:
    number = reference("unigram").token_to_id("</s>")
    (tmp_path / "tokenizer.json").write_text(library_json("unigram"))
    line = refusal(tmp_path)
    assert "which token ends a text; set data.eot_token, for example to one of: <unk>, <s>, </s>" in line
    assert open_tokenizer(tmp_path, "</s>").eot_id == number
    (tmp_path / name).write_text(content.replace("ID", str(number)))
    assert open_tokenizer(tmp_path).eot_id == number


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        table = json.loads(path.read_text())
        change(table)
        path.write_text(json.dumps(table))

    return edit


BAD = {
    "not JSON": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "other JSON": lambda path: path.write_text('{"a": 1}'),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "truncated": lambda path: path.write_text(path.read_text()[:-500]),
    "FIFO": _fifo,
    "absent": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "huge": lambda path: path.write_text(path.read_text() + " " * 5_000_000),
    "empty vocabulary": lambda path: path.write_text(tokenizers.Tokenizer(models.BPE()).to_str()),
    "no such model": _edited(lambda table: table["model"].update(type="Oracle")),
    "merges of nothing": _edited(lambda table: table["model"].update(merges=[["q7", "q8"]])),
    "ids as text": _edited(lambda table: table["model"].update(vocab={"a": "b"})),
    "huge id": _edited(lambda table: table["model"]["vocab"].update(zz=2**31)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files_module, "MAX_LIBRARY_BYTES", 4_000_000)
    path = tmp_path / "tokenizer.json"
    path.write_text(library_json("byte_level"))
    BAD[name](path)
    line = refusal(path, "</s>")
    assert str(path) in line
    assert "data.source" not in line
    assert "data.tokenizer" in line or "save_pretrained" in line


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer_config.json", "{", "is not a JSON object"),
        ("tokenizer_config.json", "[1]", "is not a JSON object"),
        ("generation_config.json", "[" * 100_000, "is not a JSON object"),
        ("config.json", '{"eos_token_id": 70000}', "70000 ends a text, which is not in the vocabulary"),
        ("tokenizer_config.json", '{"eos_token": "<gone>"}', "'<gone>' ends a text, which is not in the vocabulary"),
        ("config.json", '{"eos_token_id": true}', "nothing beside"),
        ("config.json", '{"eos_token_id": -1}', "nothing beside"),
        ("config.json", '{"eos_token_id": []}', "nothing beside"),
    ],
)
def test_bad_neighbours_are_refused_in_one_line(name: str, content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(library_json("byte_level"))
    (tmp_path / name).write_text(content)
    assert reason in refusal(tmp_path)


def test_wrong_keys_are_refused(tmp_path: Path) -> None:
    assert "holds no tokenizer.json; write one with transformers" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_text(library_json("unigram"))
    line = refusal(tmp_path, "</t>")
    assert "data.eot_token = '</t>' is not in the vocabulary" in line
    assert "did you mean '</s>'" in line
    with pytest.raises(DataError, match=r"data.eot_token is for a tokenizer.json"):
        prepare(data_config("stdlib", "byte", eot_token="</s>"), cache_dir=tmp_path / "c")
    ByteTokenizer().save(tmp_path)
    assert "has an end-of-text token of its own" in refusal(tmp_path, "</s>")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_run_goes_on_without_the_path(folder: Path, kind: str, text_file: Path, tmp_path: Path) -> None:
    """Cache gone, folder gone: the run's own tokenizer makes the same tokens."""
    config = data_config(text_file, str(folder), seq_len=4)
    data = prepare(config, cache_dir=tmp_path / "a")
    assert data.tokenizer_name == "Model-1"
    assert bool(data.warnings) == (kind in ("unigram", "wordpiece"))
    kept = tmp_path / "kept"
    kept.mkdir()
    data.tokenizer().save(kept)
    shutil.rmtree(folder)
    assert refusal(folder).endswith("Model-1: No such file or directory; check data.tokenizer")
    assert prepare(config, cache_dir=tmp_path / "a", kept_tokenizer=kept) == data
    assert prepare(config, cache_dir=tmp_path / "b", kept_tokenizer=kept).sha256 == data.sha256


def test_paths_are_stored_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "gpt2").mkdir()  # a name is a name, whatever lies here

    def stored(name: str) -> str:
        return absolute_paths(data_config("stdlib", name).data).tokenizer

    assert stored("model") == stored("./model") == str(tmp_path / "model")
    assert [stored(name) for name in ("byte", "gpt2", "bpe-300")] == ["byte", "gpt2", "bpe-300"]
    assert stored("~/x.json") == os.path.expanduser("~/x.json")


def test_another_tokenizer_is_refused_with_both_names_and_hashes(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "c"))
    made = data_config(text_file, "bpe-300", seq_len=4)
    data = prepare(made)
    stored = replace(made, data=replace(made.data, sha256=data.sha256, tokenizer_sha256=data.tokenizer_sha256))
    assert load_same_tokens(stored) == data
    other = replace(stored, data=replace(stored.data, tokenizer="byte"))
    with pytest.raises(DataError) as caught:
        load_same_tokens(other)
    line = caught.value.line()
    assert f"now gives byte (sha256 {ByteTokenizer().sha256[:12]})" in line
    assert f"(sha256 {data.tokenizer_sha256[:12]})" in line


def test_text_comes_as_it_is_decoded_whole(kind: str) -> None:
    """One token after another, with their spaces and whole characters, for every kind."""
    tokenizer = opened(kind)
    ids = tokenizer.encode("The naïve 漢字 \U0001f600 of a gradient_norm, and more.\n  Then some")
    stream = TextStream(tokenizer, ids[:3])
    pieces = [*(stream.push(token) for token in ids[3:]), stream.flush()]
    assert tokenizer.decode(ids[:3]) + "".join(pieces) == tokenizer.decode(ids)


def test_half_a_character_at_the_end_is_told() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.push(token) for token in "я".encode()[:1]] == [""]
    assert (stream.flush(), stream.flush()) == ("\ufffd", "")


def test_a_tokenizer_by_its_hub_name(text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    content = {"tokenizer.json": library_json("byte_level").encode(), "config.json": b"{}", "big.safetensors": b"w"}
    content["generation_config.json"] = b'{"eos_token_id": %d}' % reference("byte_level").token_to_id("</s>")
    config = data_config(text_file, "hf:owner/model", seq_len=4)
    with HubServer({"owner/model": content}) as server:
        for name, value in server.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        data = prepare(config, cache_dir=tmp_path / "a")
        assert server.gets("big.safetensors") == []
        (said,) = (tmp_path / "hf").rglob("snapshots/*/generation_config.json")
        said.unlink()  # as a download that was killed leaves it
        assert prepare(config, cache_dir=tmp_path / "half").sha256 == data.sha256
    said.rename(said.with_name("elsewhere"))
    with pytest.raises(DataError, match=r"nothing beside .* says which token ends a text"):
        prepare(config, cache_dir=tmp_path / "half")
    named = replace(config, data=replace(config.data, eot_token="</s>"))
    assert prepare(named, cache_dir=tmp_path / "half").sha256 == data.sha256
    said.with_name("elsewhere").rename(said)
    ids = data.tokenizer().encode(TEXT)
    assert ids == reference("byte_level").encode(TEXT, add_special_tokens=False).ids
    assert data.tokenizer_name == "owner/model"
    assert prepare(config, cache_dir=tmp_path / "b").sha256 == data.sha256, "cached: no server is there any more"
    assert absolute_paths(config.data).tokenizer == "hf:owner/model"
    shutil.rmtree(tmp_path / "hf")
    kept = data.directory / "tokenizer"
    assert prepare(config, cache_dir=tmp_path / "a", kept_tokenizer=kept) == data
    for name in ("hf:owner", "hf:a/b/c", "hf:../x/y", "hf:", "hf:a b/c"):
        with pytest.raises(DataError, match="names no repository"):
            prepare(data_config(text_file, name), cache_dir=tmp_path / "a")
