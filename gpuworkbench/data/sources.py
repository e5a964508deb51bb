"""`data.source` -> where tokens come from: text to encode, a synthetic chain, or shards to use in place."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from gpuworkbench.config.schema import DataConfig, RunConfig
from gpuworkbench.data.corpora.documents import TextCorpus, fingerprint_of
from gpuworkbench.data.corpora.records import LossOn
from gpuworkbench.data.corpora.stdlib_corpus import open_stdlib
from gpuworkbench.data.corpora.text_files import open_text
from gpuworkbench.data.encoding import bpe_size
from gpuworkbench.data.hub import OnProgress
from gpuworkbench.data.location import NAMED_SOURCES, stat_path, unreadable
from gpuworkbench.data.prepared import TOKENIZER_FOLDER
from gpuworkbench.data.shards import shard_sets
from gpuworkbench.data.shards.mask import mask_of
from gpuworkbench.data.shards.shard_file import raw_dtype_for
from gpuworkbench.data.tokenization.ids_tokenizer import NAME as IDS
from gpuworkbench.data.tokenization.tokenizer import FILE_NAME as TOKENIZER_FILE
from gpuworkbench.errors import DataError
from gpuworkbench.registry import nearest


@dataclass(frozen=True)
class TextSource:
    """Text that is encoded into the cache."""

    corpus: TextCorpus

    @property
    def fingerprint(self) -> str:
        """The corpus'."""
        return self.corpus.fingerprint


@dataclass(frozen=True)
class SyntheticSource:
    """A Markov chain; `vocabulary_text` trains a `bpe-N`, which only gives the vocabulary, and is None for others."""

    n_tokens: int
    vocabulary_text: TextCorpus | None
    bin_vocab_size: int | None = None

    @property
    def fingerprint(self) -> str:
        """Its length, and the text the vocabulary comes from."""
        text = self.vocabulary_text.fingerprint if self.vocabulary_text is not None else ""
        return fingerprint_of("synthetic", self.n_tokens, text, self.bin_vocab_size)


@dataclass(frozen=True)
class ShardSource:
    """Token shards, used where they lie. Without validation shards the end of the last one is held out.

    `bin_vocab_size` allows files without a header; answer masks lie beside their shards.
    """

    name: str
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    loss_on: LossOn = "auto"
    bin_vocab_size: int | None = None

    @property
    def raw_dtype(self) -> str:
        """The type of tokens in files without a header, empty where they are refused."""
        return "" if self.bin_vocab_size is None else raw_dtype_for(self.bin_vocab_size)

    def mask(self, shard: Path) -> Path | None:
        """The answer mask of a shard, where there is one that counts. DataError where one is needed."""
        mask = mask_of(shard)
        if self.loss_on != "all" and os.path.lexists(mask):
            return mask
        if self.loss_on == "answers":
            raise DataError(
                f"token shard {shard} has no answer mask {mask.name} beside it, and data.loss_on is answers",
                "set data.loss_on=auto",
            )
        return None

    @property
    def fingerprint(self) -> str:
        """Paths, sizes and times, of the answer masks and the tokenizer beside them too, and how they are read."""
        parts = []
        if (tokenizer := self.train[0].parent / TOKENIZER_FOLDER / TOKENIZER_FILE).exists():
            info = stat_path(tokenizer)
            parts.append(f"{info.st_size}\n{info.st_mtime_ns}\n{info.st_ctime_ns}")
        for shard in (*self.train, *self.val):
            mask = self.mask(shard)
            for path in (shard,) if mask is None else (shard, mask):
                info = stat_path(path)
                parts.append(f"{path}\n{info.st_size}\n{info.st_mtime_ns}\n{info.st_ctime_ns}")
        return fingerprint_of("shards", len(self.train), self.loss_on, self.bin_vocab_size, *parts)

    def first(self, n_shards: int | None) -> ShardSource:
        """The first training shards only; all for None. DataError for fewer than that."""
        return replace(self, train=shard_sets.take(self.name, self.train, n_shards))


Source = TextSource | SyntheticSource | ShardSource


def with_vocabulary(config: RunConfig) -> DataConfig:
    """The data section; with data.tokenizer = ids, the vocabulary size is the model's where none is given."""
    data = config.data
    if data.tokenizer != IDS or data.bin_vocab_size is not None or not config.model.vocab_size:
        return data
    return msgspec.structs.replace(data, bin_vocab_size=config.model.vocab_size)


def resolve_source(config: DataConfig, root: Path, report: OnProgress | None = None) -> Source:
    """Find the source, looking at names and sizes only; a named set of shards is downloaded where it is not there.

    `root` is the cache folder. Raises DataError; DoesNotFitError where the disk is too small for a download.
    """
    if config.loss_on == "answers" and config.source in ("stdlib", "synthetic"):
        raise DataError(
            f"data.source = {config.source} has no answers, and data.loss_on is answers", "set data.loss_on=auto"
        )
    if config.source == "stdlib":
        return TextSource(open_stdlib())
    if config.source == "synthetic":
        text = open_stdlib() if bpe_size(config.tokenizer) is not None else None
        return SyntheticSource(config.synthetic_tokens, text, config.bin_vocab_size)
    if config.source in shard_sets.SHARD_SETS:
        return _as_configured(_named_shards(config, root, report or _say_nothing), config)
    found = _from_path(config)
    return _as_configured(found.first(config.shards) if isinstance(found, ShardSource) else found, config)


def _as_configured(source: Source, config: DataConfig) -> Source:
    if isinstance(source, ShardSource):
        return replace(source, loss_on=config.loss_on, bin_vocab_size=config.bin_vocab_size)
    return source


def _from_path(config: DataConfig) -> Source:
    source = config.source
    if not source:
        raise DataError("data.source is empty", f"choices: {', '.join(NAMED_SOURCES)}, or a path")
    path = Path(source).expanduser()
    if not os.path.lexists(path) if "\0" not in source else False:
        close = nearest(source, list(NAMED_SOURCES))
        suggestion = f"did you mean {close!r}? " if close else ""
        raise DataError(
            f"data.source = {source!r}: no such file or folder",
            f"{suggestion}choices: {', '.join(NAMED_SOURCES)}, or a path",
        )
    path = _recordable(Path(os.path.abspath(path)))
    if not stat.S_ISDIR(stat_path(path).st_mode):
        return _one_shard(path) if path.suffix == ".bin" else TextSource(_open_text(path, config))
    return shards_in(path) or TextSource(_open_text(path, config))


def _recordable(path: Path) -> Path:
    """The path itself. DataError where it is not UTF-8: no run file and no record of the tokens could hold it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError(f"data.source: the name {shown} is not UTF-8", "rename it") from None
    return path


def _open_text(path: Path, config: DataConfig) -> TextCorpus:
    return open_text(path, config.documents, config.loss_on)


def _one_shard(path: Path) -> ShardSource:
    """A shard named `*train*` brings the one of the same name with `val` that lies beside it."""
    val = path.with_name(path.name.replace("train", "val"))
    has_val = val != path and os.path.lexists(val)
    return ShardSource(str(path), (path,), (val,) if has_val else ())


def shards_in(folder: Path) -> ShardSource | None:
    """The folder's `*train*.bin` and `*val*.bin` files, None where it has neither. DataError with none to train on."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from error
    shards = [_recordable(folder / name).name for name in names if name.endswith(".bin")]
    train = tuple(folder / name for name in shards if "train" in name)
    val = tuple(folder / name for name in shards if "val" in name and "train" not in name)
    if not train and not val:
        return None
    if not train:
        raise DataError(f"folder {folder} has validation shards but no *train*.bin", "add the training shards")
    return ShardSource(str(folder), train, val)


def _named_shards(config: DataConfig, root: Path, report: OnProgress) -> ShardSource:
    """A published set: from a local folder of its name, else from the hub's cache, else downloaded."""
    shard_sets.check_tokenizer(config)
    for folder in shard_sets.local_folders(config.source, root):
        if folder.is_dir() and (found := shards_in(folder)) is not None:
            return found.first(config.shards)
    return ShardSource(config.source, *shard_sets.hub_shards(config, report))


def _say_nothing(message: str, fraction: float | None) -> None:
    """No progress is wanted."""
