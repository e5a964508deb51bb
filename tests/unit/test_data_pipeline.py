"""Encoding in parallel and interrupted: the same bytes whatever the number of workers and wherever it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data import PreparedData, cache, partial, pipeline
from gpuworkbench.data.corpora.sieve import CleanCorpus
from gpuworkbench.data.corpora.text_files import open_text
from gpuworkbench.data.prepare import prepare_data
from gpuworkbench.data.shards import split_writer
from gpuworkbench.data.split import splitter_for
from gpuworkbench.data.tokenization.tokenizer import ByteTokenizer, load_tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import Files
from tests.fixtures.faulty_files import FaultyFiles, PowerCut
from tests.fixtures.shared_data import shared_data

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = {"tokenizer": "bpe-300", "val_fraction": 0.1, "normalize": "nfc", "dedup": True, "min_chars": 3}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches, many shards, and a record after every batch."""
    monkeypatch.setattr(pipeline, "BATCH_CHARS", 600)
    monkeypatch.setattr(pipeline, "SAVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(split_writer.SplitWriter.__init__, "__kwdefaults__", {"max_shard_tokens": 900})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Chats and texts, Russian and English, with duplicates."""
    path = tmp_path / "source"
    path.mkdir()
    texts = [f"Запись {n % 90}: и\u0306 и текст, which is long enough to be a document." * 2 for n in range(120)]
    (path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (path / "b.txt").write_text("".join(f"Строка {n} of a longer text.\n" for n in range(200)))
    return path


def made(source: Path, cache: Path, *, files: Files | None = None, workers: int = 2) -> PreparedData:
    config = DataConfig(source=str(source), **KEYS)  # type: ignore[arg-type]
    return prepare_data(config, cache_dir=cache, workers=workers, files=files or Files())


def content(prepared: PreparedData) -> dict[str, bytes]:
    """Every file of a prepared directory but the record, which a cut after the rename may leave: nobody reads it."""
    files = (path for path in sorted(prepared.directory.rglob("*")) if path.is_file())
    paths = (path for path in files if path.name != partial.FILE_NAME)
    return {str(path.relative_to(prepared.directory)): path.read_bytes() for path in paths}


@pytest.mark.usefixtures("small_pieces")
def test_the_number_of_workers_changes_no_byte(source: Path, tmp_path: Path) -> None:
    results = [content(made(source, tmp_path / f"c{workers}", workers=workers)) for workers in (1, 2, 7)]
    assert results[0] == results[1] == results[2]
    assert {"train-00000.bin", "train-00005.bin", "val-00000.bin", "meta.json"} <= set(results[0])


@pytest.mark.usefixtures("small_pieces")
def test_tokens_are_those_of_the_texts_one_by_one(source: Path, tmp_path: Path) -> None:
    prepared = made(source, tmp_path / "c")
    tokenizer = prepared.tokenizer()
    expected = [f"Запись {n}: й и текст, which is long enough to be a document." * 2 for n in range(90)]
    found = []
    for split in ("train", "val"):
        tokens = prepared.tokens(split)  # type: ignore[arg-type]
        ids = tokens.slice(0, len(tokens))
        starts = [*np.flatnonzero(ids == tokenizer.eot_id).tolist(), len(ids)]
        assert starts[0] == 0
        found += [ids[start + 1 : end].tolist() for start, end in pairwise(starts)]
    assert [tokenizer.encode(text) in found for text in expected] == [True] * 90
    assert prepared.sifted is not None
    assert prepared.sifted.dropped["duplicate"].documents == 30
    assert prepared.n_documents == prepared.sifted.kept_documents == 91


@pytest.mark.usefixtures("small_pieces")
def test_a_power_cut_at_any_operation_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    counter = FaultyFiles()
    expected = content(made(source, tmp_path / "whole", files=counter))
    steps = range(3, counter.count, max(counter.count // 14, 1))
    n_resumed = 0
    for step in sorted({*steps, counter.count - 1}):
        cache = tmp_path / f"cut{step}"
        cut = FaultyFiles(fail_at=step, power_cut=True)
        with pytest.raises(PowerCut):
            made(source, cache, files=cut)
        cut.lose(cache, contents=True, names=step % 2 == 0)
        left = list(cache.glob(f"data/{partial.PREFIX}*"))
        n_resumed += any(partial.is_resumable(folder) for folder in left)
        assert content(made(source, cache)) == expected
        assert [path.name for path in (cache / "data").iterdir()] == [next(iter((cache / "data").iterdir())).name]
    assert n_resumed > 9


@pytest.mark.usefixtures("small_pieces")
def test_a_full_disk_is_one_line_and_nothing_is_encoded_twice(source: Path, tmp_path: Path) -> None:
    counter = FaultyFiles()
    expected = content(made(source, tmp_path / "whole", files=counter))
    with pytest.raises(DataError, match=r"cannot write the data cache.*No space left"):
        made(source, tmp_path / "c", files=FaultyFiles(fail_at=counter.count * 3 // 4))
    (folder,) = (tmp_path / "c" / "data").glob(f"{partial.PREFIX}*")
    saved = partial.Journal(folder, folder.name.removeprefix(partial.PREFIX)).saved
    assert saved is not None
    pace = pipeline.Pace()
    config = DataConfig(source=str(source), **KEYS)  # type: ignore[arg-type]
    again = prepare_data(config, cache_dir=tmp_path / "c", pace=pace)
    assert content(again) == expected
    before = sum(state.open_tokens + sum(part.n_tokens for part in state.parts) for state in saved.splits.values())
    assert pace.n_tokens == again.n_train_tokens + again.n_val_tokens - before


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "name", ["train-00000.bin", "val-00000.bin", "open", "progress.json", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_what_was_left_is_verified(name: str, damage: str, source: Path, tmp_path: Path) -> None:
    expected = content(made(source, tmp_path / "whole"))
    with pytest.raises(PowerCut):
        made(source, tmp_path / "c", files=FaultyFiles(fail_at=150, power_cut=True))
    (folder,) = (tmp_path / "c" / "data").glob(f"{partial.PREFIX}*")
    assert partial.is_resumable(folder)
    path = max(folder.glob("train-*.bin")) if name == "open" else folder / name
    whole = path.read_bytes()
    match damage:
        case "flip":
            place = min(len(whole) - 1, 1024 + len(whole) // 8)
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        case "truncate":
            path.write_bytes(whole[: len(whole) // 2])
        case _:
            path.unlink()
    assert content(made(source, tmp_path / "c")) == expected


@pytest.mark.usefixtures("small_pieces")
def test_text_that_changed_behind_its_time_stamp_is_not_gone_on_with(source: Path, tmp_path: Path) -> None:
    path = source / "b.txt"
    with pytest.raises(PowerCut):
        made(source, tmp_path / "c", files=FaultyFiles(fail_at=150, power_cut=True))
    info = path.stat()
    first = source / "a.jsonl"
    times = first.stat()
    first.write_text(first.read_text().replace("long enough", "LONG enough"))
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert content(made(source, tmp_path / "c")) == content(made(source, tmp_path / "fresh"))


CHILD = """
import sys
from pathlib import Path
from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data import pipeline
from gpuworkbench.data.prepare import prepare_data
pipeline.BATCH_CHARS, pipeline.SAVE_INTERVAL_S = 20_000, 0.0
def say(stage, share):
    print(stage, share, flush=True)
prepared = prepare_data(DataConfig(source=sys.argv[1], tokenizer="byte"), cache_dir=Path(sys.argv[2]), on_progress=say)
print(prepared.sha256, flush=True)
"""


def child(*arguments: object, code: str = CHILD) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_processes_go_on_to_the_same_bytes(kill: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} бутылок пива на стене.\n" for n in range(30_000)))
    expected = content(prepare_data(DataConfig(source=str(path), tokenizer="byte"), cache_dir=tmp_path / "whole"))
    reached = 0.0
    for share in (0.2, 0.5, 0.8):
        process = child(path, tmp_path / "c")
        assert process.stdout is not None
        for line in process.stdout:
            stage, _, value = line.rstrip().rpartition(" ")
            if stage.startswith("encoding") and value != "None" and float(value) >= share:
                assert float(value) > reached
                reached = float(value)
                break
        process.send_signal(kill)
        process.communicate(timeout=30)
        assert process.returncode != 0
    prepared = prepare_data(DataConfig(source=str(path), tokenizer="byte"), cache_dir=tmp_path / "c")
    assert content(prepared) == expected


def test_two_preparations_at_once_do_the_work_once(source: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    results: list[PreparedData] = []

    def work() -> None:
        config = DataConfig(source=str(source), **KEYS)  # type: ignore[arg-type]
        results.append(
            prepare_data(config, cache_dir=tmp_path / "c", on_progress=lambda stage, _: stages.append(stage))
        )

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.sha256 for result in results}) == 1
    assert sum(stage.startswith("training") for stage in stages) == 1
    assert len(list((tmp_path / "c" / "data").iterdir())) == 1


MEMORY = """
import resource, sys
from pathlib import Path
import msgspec
from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data.prepare import prepare_data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = msgspec.json.decode(sys.argv[1], type=DataConfig)
prepared = prepare_data(config, cache_dir=Path(sys.argv[2]), workers=2)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, prepared.n_train_tokens + prepared.n_val_tokens)
"""


@pytest.mark.parametrize(
    ("n_blocks", "keys"), [(60, {}), (6, {"documents": "line", "dedup": True, "clean": True, "normalize": "nfc"})]
)
def test_memory_does_not_grow_with_the_file(n_blocks: int, keys: dict[str, object], tmp_path: Path) -> None:
    """125 MB of text under a ceiling of 64 MiB above the interpreter and its libraries."""
    path = tmp_path / "large.txt"
    block = "".join(f"{n} Съешь ещё этих мягких французских булок, да выпей чаю.\n" for n in range(20_000)).encode()
    with path.open("wb") as stream:
        for _ in range(n_blocks):
            stream.write(block)
    config = json.dumps({"source": str(path), "tokenizer": "byte", **keys})
    process = child(config, tmp_path / "c", code=MEMORY)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    before_kib, after_kib, n_tokens = map(int, out.split())
    # Each line is kept once, an end of text in place of its end; a whole file is held out in part: two documents.
    assert n_tokens == (len(block) if keys else len(block) * n_blocks + 2)
    assert after_kib - before_kib < 64 * 1024


@pytest.mark.parametrize("keys", [{"dedup": True}, {"min_chars": 20}])
def test_documents_that_are_dropped_do_not_count_for_the_split(keys: dict[str, Any], tmp_path: Path) -> None:
    """Five of a thousand lines are kept: a hash would give the validation split none of them."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {n % 4}\n" for n in range(1000)) + "a line of its own, long enough to be kept\n")
    prepared = prepare_data(
        DataConfig(source=str(path), tokenizer="byte", documents="line", **keys), cache_dir=tmp_path
    )
    assert prepared.sifted is not None
    assert prepared.sifted.kept_documents == (5 if keys.get("dedup") else 1)
    assert min(prepared.n_train_tokens, prepared.n_val_tokens) > 0


def test_tiny_records_make_no_large_batches(tmp_path: Path) -> None:
    path = tmp_path / "tiny.jsonl"
    path.write_text('{"text":"a"}\n' * 40_000)
    corpus = CleanCorpus(open_text(path), DataConfig())
    batches = list(pipeline.cut_batches(corpus, splitter_for(corpus, 0.05, 0)))
    assert sum(batch.n_documents for batch in batches) == 40_000
    assert max(len(batch.pieces) for batch in batches) < 20_000


class TestOut:
    """`--out`: a folder of shards that can be used elsewhere."""

    @pytest.fixture
    def out(self, source: Path, tmp_path: Path) -> Path:
        config = DataConfig(source=str(source), **KEYS)  # type: ignore[arg-type]
        prepare_data(config, out=tmp_path / "out", cache_dir=tmp_path / "c")
        return tmp_path / "out"

    def test_it_is_a_source_with_the_same_tokens(self, out: Path, source: Path, tmp_path: Path) -> None:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
        names = sorted(path.name for path in out.iterdir())
        assert names == [
            "meta.json",
            "tokenizer",
            "tokenizer.json",
            "tokenizer_config.json",
            "train-00000.bin",
            "val-00000.bin",
        ]
        moved = out.rename(tmp_path / "moved")
        used = prepare_data(DataConfig(source=str(moved), tokenizer="bpe-300"), cache_dir=tmp_path / "c")
        assert used.sha256 == made(source, tmp_path / "c").sha256
        assert load_tokenizer(moved / "tokenizer").sha256 == used.tokenizer().sha256

    def test_the_tokenizers_library_reads_its_tokenizer(self, out: Path) -> None:
        library = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
        text = "Съешь ещё этих мягких французских булок"
        assert library.encode(text).ids == load_tokenizer(out / "tokenizer").encode(text)

    @pytest.mark.parametrize("name", ["", "tokenizer", "tokenizer/tokenizer.json"])
    def test_it_is_a_tokenizer(self, name: str, out: Path, tmp_path: Path) -> None:
        used = prepare_data(DataConfig(source=str(out), tokenizer=str(out / name)), cache_dir=tmp_path / "c")
        assert used.tokenizer_sha256 == load_tokenizer(out / "tokenizer").sha256

    def test_a_tokenizer_by_path_goes_along(self, out: Path, source: Path, tmp_path: Path) -> None:
        """The path may be gone where the folder is taken: the refusal names the folder, which is enough."""
        own = tmp_path / "mine"
        out.rename(own)
        library = str(own / "tokenizer.json")
        elsewhere = tmp_path / "elsewhere"
        config = DataConfig(source=str(source), tokenizer=library)
        prepared = prepare_data(config, out=elsewhere, cache_dir=tmp_path / "c")
        assert json.loads((elsewhere / "tokenizer.json").read_bytes()) == json.loads(Path(library).read_bytes())
        with pytest.raises(DataError, match=r"data\.tokenizer is 'byte'") as caught:
            prepare_data(DataConfig(source=str(elsewhere), tokenizer="byte"), cache_dir=tmp_path / "c")
        assert caught.value.hint == f"set data.tokenizer={elsewhere}"
        used = prepare_data(DataConfig(source=str(elsewhere), tokenizer=str(elsewhere)), cache_dir=tmp_path / "c")
        assert used.tokenizer_sha256 == prepared.tokenizer_sha256

    def test_a_tokenizer_that_no_file_can_express_is_said(self, tmp_path: Path) -> None:
        config = DataConfig(source="synthetic", tokenizer="ids", bin_vocab_size=300, synthetic_tokens=5000)
        prepared = prepare_data(config, out=tmp_path / "o", cache_dir=tmp_path / "c")
        assert not (tmp_path / "o" / "tokenizer.json").exists()
        assert "the tokenizer 'ids' cannot be written as tokenizer.json" in prepared.warnings

    def test_it_is_made_once(self, out: Path, source: Path, tmp_path: Path) -> None:
        stages: list[str] = []
        config = DataConfig(source=str(source), **KEYS)  # type: ignore[arg-type]
        prepare_data(config, out=out, cache_dir=tmp_path / "c", on_progress=lambda stage, _: stages.append(stage))
        assert stages == []

    def test_what_is_there_is_never_touched(self, out: Path, source: Path, tmp_path: Path) -> None:
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        with pytest.raises(DataError, match="is there already and holds something else"):
            prepare_data(DataConfig(source=str(source), tokenizer="byte"), out=out, cache_dir=tmp_path / "c")
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    @pytest.mark.usefixtures("small_pieces")
    def test_what_was_begun_with_other_keys_is_not_gone_on_with(self, source: Path, tmp_path: Path) -> None:
        files = FaultyFiles(fail_at=150, power_cut=True)
        with pytest.raises(PowerCut):
            prepare_data(DataConfig(source=str(source), tokenizer="bpe-300"), out=tmp_path / "o", files=files)
        assert partial.is_resumable(tmp_path / f"{partial.PREFIX}o")
        prepared = prepare_data(DataConfig(source=str(source), tokenizer="bpe-400"), out=tmp_path / "o")
        fresh = prepare_data(DataConfig(source=str(source), tokenizer="bpe-400"), out=tmp_path / "fresh")
        assert content(prepared) == content(fresh)

    def test_it_may_be_an_empty_folder(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        config = DataConfig(source=str(source), tokenizer="byte")
        prepared = prepare_data(config, out=tmp_path / "empty", cache_dir=tmp_path / "c")
        assert prepared.directory == tmp_path / "empty"

    def test_another_tokenizer_is_named(self, out: Path, tmp_path: Path) -> None:
        for name in ("byte", "bpe-400"):
            with pytest.raises(DataError, match=rf"made with the tokenizer 'bpe-300' \(.{{12}}\).*'{name}'") as caught:
                prepare_data(DataConfig(source=str(out), tokenizer=name), cache_dir=tmp_path / "c")
            assert caught.value.hint == "set data.tokenizer=bpe-300"

    def test_a_tokenizer_put_beside_the_shards_later_is_noticed(self, out: Path, tmp_path: Path) -> None:
        config = DataConfig(source=str(out), tokenizer="bpe-300")
        prepare_data(config, cache_dir=tmp_path / "c")
        ByteTokenizer().save(out / "tokenizer")
        with pytest.raises(DataError, match=r"made with the tokenizer 'byte'.*'bpe-300'"):
            prepare_data(config, cache_dir=tmp_path / "c")

    @pytest.mark.parametrize("key", ["documents", "clean", "normalize", "min_chars", "dedup"])
    def test_tokens_are_not_cleaned(self, key: str, out: Path, tmp_path: Path) -> None:
        value = {"documents": "line", "clean": True, "normalize": "nfc", "min_chars": 1, "dedup": True}[key]
        for source in (str(out), "synthetic"):
            with pytest.raises(DataError, match=rf"data\.{key} = .* is tokens already"):
                prepare_data(DataConfig(source=source, tokenizer="bpe-300", **{key: value}), cache_dir=tmp_path / "c")  # type: ignore[arg-type]

    def test_shards_and_places_that_do_not_work(self, out: Path, source: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is token shards already"):
            prepare_data(DataConfig(source=str(out), tokenizer="bpe-300"), out=tmp_path / "o", cache_dir=tmp_path / "c")
        with pytest.raises(DataError, match="is inside of the source"):
            prepare_data(DataConfig(source=str(source), tokenizer="byte"), out=source / "o", cache_dir=tmp_path / "c")
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"cannot write .*file/sub"):
            prepare_data(
                DataConfig(source=str(source), tokenizer="byte"),
                out=tmp_path / "file" / "sub" / "o",
                cache_dir=tmp_path,
            )
        assert not (source / "o").exists()


def test_nothing_kept_is_said_with_the_reasons(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"holds no text that is kept \(dropped: 2 too short\)"):
        prepare_data(DataConfig(source=str(path), tokenizer="byte", documents="line", min_chars=9), cache_dir=tmp_path)


def test_the_end_of_a_cleaned_file_is_held_out(tmp_path: Path) -> None:
    """Carriage returns count in the file's size, not in the text: the split must not."""
    path = tmp_path / "crlf.txt"
    path.write_bytes(b"a\r\n" * 3000)
    prepared = prepare_data(
        DataConfig(source=str(path), tokenizer="byte", clean=True, val_fraction=0.1), cache_dir=tmp_path / "c"
    )
    assert (prepared.n_train_tokens, prepared.n_val_tokens) == (5403, 599)  # after the line that begins at nine tenths


def test_gpt2_tokens_are_tiktokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data("tiktoken")))
    monkeypatch.setattr(pipeline, "BATCH_CHARS", 50_000)
    path = shared_data("rust_book.txt")
    config = DataConfig(source=str(path), tokenizer="gpt2", documents="paragraph", dedup=True)
    prepared = prepare_data(config, cache_dir=tmp_path / "c")
    encoding = tiktoken.get_encoding("gpt2")
    seen: set[str] = set()
    expected: set[tuple[int, ...]] = set()
    for text in paragraphs(path.read_text()):
        if text.strip() not in seen:
            seen.add(text.strip())
            expected.add(tuple(encoding.encode_ordinary(text)))
    found: set[tuple[int, ...]] = set()
    for split in ("train", "val"):
        tokens = prepared.tokens(split)  # type: ignore[arg-type]
        ids = tokens.slice(0, len(tokens))
        found |= {tuple(part[1:].tolist()) for part in np.split(ids, np.flatnonzero(ids == 50256))[1:]}
    assert found == expected


def paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*text.replace("\r\n", "\n").split("\n"), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


def test_what_a_killed_generation_left_is_swept_away(tmp_path: Path) -> None:
    config = DataConfig(source="synthetic", tokenizer="byte", synthetic_tokens=1000)
    prepared = prepare_data(config, cache_dir=tmp_path / "c")
    expected = content(prepared)
    left = prepared.directory.with_name(f"{partial.PREFIX}{prepared.directory.name}")
    prepared.directory.rename(left)
    (left / "tokenizer" / "tokenizer.json").unlink()
    (left / "meta.json").unlink()
    (left / "train-00007.bin").touch()
    assert content(prepare_data(config, cache_dir=tmp_path / "c")) == expected


@pytest.mark.usefixtures("small_pieces")
def test_a_source_that_cannot_be_read_for_a_while_is_gone_on_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that goes away loses nothing; bytes that are no text do: their file will be another one."""
    from gpuworkbench.data.corpora import text_files

    expected = content(made(source, tmp_path / "whole"))
    whole = text_files.file_chunks
    passes: list[Path] = []

    def broken(path: Path) -> Iterator[str]:
        passes.append(path)
        if len(passes) == 1:  # the vocabulary's
            yield from whole(path)
            return
        yield next(iter(whole(path)))[:3000]
        raise DataError(f"cannot read data at {path}: Input/output error", "check data.source") from OSError(5, "I/O")

    monkeypatch.setattr(text_files, "file_chunks", broken)
    with pytest.raises(DataError, match="Input/output error"):
        made(source, tmp_path / "c")
    (folder,) = (tmp_path / "c" / "data").iterdir()
    assert partial.is_resumable(folder)
    monkeypatch.setattr(text_files, "file_chunks", whole)
    assert content(made(source, tmp_path / "c")) == expected
    (source / "b.txt").write_bytes(b"text\n" * 500 + b"\xff")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8 at byte offset 2500"):
        made(source, tmp_path / "other")
    assert list((tmp_path / "other" / "data").iterdir()) == []


def test_a_large_directory_is_not_hashed_at_every_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = made(source, tmp_path / "c")
    path = prepared.directory / "train-00000.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cache.find(prepared.directory) is None
    monkeypatch.setattr(cache, "VERIFY_LIMIT_BYTES", len(data))
    assert cache.find(prepared.directory) == prepared
    path.write_bytes(data[:-2])
    assert cache.find(prepared.directory) is None
