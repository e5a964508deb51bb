"""Making a prepared directory: encode text, generate a chain, or check shards that are used in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data import cache
from gpuworkbench.data.corpora.documents import TextCorpus
from gpuworkbench.data.corpora.sieve import CleanCorpus, Sifted
from gpuworkbench.data.encoding import Progress, bpe_size, exactness_warnings, make_tokenizer, vocabulary_warnings
from gpuworkbench.data.meta import FORMAT, Meta, Part
from gpuworkbench.data.partial import Journal, StaleProgressError
from gpuworkbench.data.pipeline import Pace, encode_corpus
from gpuworkbench.data.prepared import TOKENIZER_FOLDER, PreparedData
from gpuworkbench.data.shards.mask import scan_mask
from gpuworkbench.data.shards.shard_file import TokenCheck, map_shard, scan_shard
from gpuworkbench.data.shards.split_writer import SplitWriter, whole_shard
from gpuworkbench.data.sources import ShardSource, Source, SyntheticSource, TextSource, resolve_source
from gpuworkbench.data.split import SPLITS, Split, Splitter, splitter_for
from gpuworkbench.data.synthetic import ENTROPY_RATE_NATS, synthetic_blocks
from gpuworkbench.data.tokenization.library_tokenizer import LibraryTokenizer
from gpuworkbench.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from gpuworkbench.data.tokenization.tokenizer_export import write_tokenizer_json
from gpuworkbench.errors import DataError
from gpuworkbench.io import Files


class Builder:
    """Makes one prepared directory. `key` names what was asked for.

    One for use elsewhere gets, at its top, the tokenizer as other programs read it.
    """

    def __init__(
        self,
        config: DataConfig,
        root: Path,
        key: str,
        files: Files,
        report: Progress,
        *,
        workers: int | None = None,
        pace: Pace | None = None,
        check_tokenizer: Callable[[Tokenizer], None] | None = None,
        is_for_elsewhere: bool = False,
    ) -> None:
        self._config = config
        self._root = root
        self._key = key
        self._files = files
        self._report = report
        self._workers = workers
        self._pace = pace or Pace()
        self._check_tokenizer = check_tokenizer or (lambda tokenizer: None)
        self._is_for_elsewhere = is_for_elsewhere

    def build(self, home: Path, source: Source) -> PreparedData:
        """Encode, generate or scan; then commit. DataError if the source changed meanwhile. Raises OSError."""

        def fill(directory: Path) -> Meta:
            if isinstance(source, TextSource):
                meta = self._encode_text(directory, source.corpus)
            else:
                Journal(directory, self._key, self._files).start_over()  # quick enough to begin again
                match source:
                    case SyntheticSource():
                        meta = self._generate(directory, source)
                    case ShardSource():
                        meta = self._scan(directory, source)
            if resolve_source(self._config, self._root).fingerprint != source.fingerprint:
                raise DataError(f"data.source = {self._config.source!r} changed while it was read", "start again")
            return self._with_library_file(directory, meta) if self._is_for_elsewhere else meta

        # The cache is ours to repair, a folder that a person named is not.
        return cache.build(home, fill, self._report, self._files, replaces_damaged=not self._is_for_elsewhere)

    def _with_library_file(self, directory: Path, meta: Meta) -> Meta:
        """Write tokenizer.json for other programs; a warning where the format cannot express the tokenizer."""
        try:
            write_tokenizer_json(load_tokenizer(directory / TOKENIZER_FOLDER), directory, self._files)
        except DataError as error:
            return msgspec.structs.replace(meta, warnings=(*meta.warnings, error.message))
        return meta

    def _encode_text(self, directory: Path, corpus: TextCorpus) -> Meta:
        journal = Journal(directory, self._key, self._files)
        try:
            return self._encode_after(journal, corpus)
        except StaleProgressError as reason:
            self._report(f"starting again: {reason}", None)
            journal.start_over()
            return self._encode_after(journal, corpus)

    def _encode_after(self, journal: Journal, raw: TextCorpus) -> Meta:
        """Encode all that the journal does not say is encoded."""
        config, directory = self._config, journal.directory
        splitter = splitter_for(CleanCorpus(raw, config, scratch=directory), config.val_fraction, config.seed)
        is_cut = config.clean or config.normalize != "none" or config.documents != "file"
        corpus = CleanCorpus(raw, config, scratch=directory, exact_sizes=is_cut and not splitter.by_document)
        tokenizer, warnings = self._tokenizer_for(journal, corpus, splitter)
        self._check_tokenizer(tokenizer)
        self._report(f"encoding with {tokenizer.name}", 0.0)
        with self._writer(directory, "train", tokenizer) as train, self._writer(directory, "val", tokenizer) as val:
            writers: dict[Split, SplitWriter] = {"train": train, "val": val}
            if journal.saved is not None and not all(
                writers[split].restore(state) for split, state in journal.saved.splits.items()
            ):
                raise StaleProgressError("what an interrupted preparation left is damaged")
            n_documents = encode_corpus(
                corpus,
                splitter,
                tokenizer,
                writers,
                self._report,
                workers=self._workers,
                journal=journal,
                pace=self._pace,
            )
            if not n_documents:
                raise DataError(f"{raw.description} holds no text{_all_dropped(corpus.report)}")
            parts: dict[Split, tuple[Part, ...]] = {split: writers[split].finish() for split in SPLITS}
        return self._meta(
            directory,
            tokenizer,
            parts,
            description=raw.description,
            n_documents=n_documents,
            warnings=raw.warnings + warnings,
            sifted=corpus.report,
        )

    def _tokenizer_for(
        self, journal: Journal, corpus: TextCorpus, splitter: Splitter
    ) -> tuple[Tokenizer, tuple[str, ...]]:
        """The tokenizer, and warnings about it; that of an interrupted preparation is not trained again."""
        if journal.saved is None:
            journal.start_over()
            tokenizer, warnings = make_tokenizer(self._config.tokenizer, corpus, splitter, self._report)
            self._save_tokenizer(journal.directory, tokenizer)
            return tokenizer, warnings
        try:
            tokenizer = load_tokenizer(journal.directory / TOKENIZER_FOLDER)
        except DataError as error:
            raise StaleProgressError("its tokenizer is damaged") from error
        if tokenizer.sha256 != journal.saved.tokenizer_sha256:
            raise StaleProgressError("its tokenizer is another one")
        return tokenizer, vocabulary_warnings(self._config.tokenizer, tokenizer) + exactness_warnings(tokenizer)

    def _generate(self, directory: Path, source: SyntheticSource) -> Meta:
        config, text = self._config, source.vocabulary_text
        splitter = splitter_for(text, config.val_fraction, config.seed) if text is not None else None
        tokenizer, warnings = make_tokenizer(config.tokenizer, text, splitter, self._report, config.bin_vocab_size)
        n_train = source.n_tokens - max(1, round(source.n_tokens * config.val_fraction))
        done = 0
        with self._writer(directory, "train", tokenizer) as train, self._writer(directory, "val", tokenizer) as val:
            for block in synthetic_blocks(source.n_tokens, tokenizer.vocab_size, config.seed):
                cut = min(max(n_train - done, 0), len(block))
                train.append(block[:cut])
                val.append(block[cut:])
                done += len(block)
                self._report("generating tokens", done / source.n_tokens)
            parts: dict[Split, tuple[Part, ...]] = {"train": train.finish(), "val": val.finish()}
        description = f"synthetic Markov chain, entropy rate {ENTROPY_RATE_NATS:.4f} nats per token"
        return self._meta(directory, tokenizer, parts, description=description, n_documents=1, warnings=warnings)

    def _scan(self, directory: Path, source: ShardSource) -> Meta:
        paths: dict[Split, tuple[Path, ...]] = {"train": source.train, "val": source.val}
        lengths = (len(map_shard(path, source.raw_dtype)) for path in (*source.train, *source.val))
        total, done, n_documents = sum(lengths), 0, 0  # every header first: quick
        tokenizer, warnings = self._shards_tokenizer(source)
        check = TokenCheck.of(tokenizer, source.bin_vocab_size, source.raw_dtype)

        def count(n_tokens: int) -> None:
            nonlocal done
            done += n_tokens
            self._report("checking token shards", done / total)

        scanned: dict[Split, list[Part]] = {"train": [], "val": []}
        for split, shards in paths.items():
            for path in shards:
                scan = scan_shard(path, check, on_tokens=count)
                n_documents += scan.n_documents
                mask = source.mask(path)
                scanned[split].append(
                    whole_shard(
                        str(path),
                        path,
                        scan.n_tokens,
                        scan.sha256,
                        mask=str(mask) if mask else "",
                        mask_sha256=scan_mask(mask, scan.n_tokens) if mask else "",
                        raw_dtype=source.raw_dtype,
                    )
                )
        train, val = tuple(scanned["train"]), tuple(scanned["val"])
        if not val:
            train, val = _hold_out_tail(train, self._config.val_fraction)
        return self._meta(
            directory,
            tokenizer,
            {"train": train, "val": val},
            description=f"token shards at {source.name}",
            n_documents=n_documents or None,
            warnings=warnings,
        )

    def _shards_tokenizer(self, source: ShardSource) -> tuple[Tokenizer, tuple[str, ...]]:
        """The one that lies beside prepared shards, where it is the one asked for; else the one asked for."""
        folder, name = source.train[0].parent / TOKENIZER_FOLDER, self._config.tokenizer
        beside = load_tokenizer(folder) if folder.is_dir() else None
        if beside is not None and beside.name == name:
            return beside, ()
        if beside is not None and bpe_size(name) is not None:
            raise _other_tokenizer(source, beside, f"data.tokenizer is {name!r}")
        tokenizer, warnings = make_tokenizer(name, None, None, self._report, source.bin_vocab_size)
        if beside is not None and beside.sha256 != tokenizer.sha256:
            raise _other_tokenizer(source, beside, f"data.tokenizer is {tokenizer.name!r} ({tokenizer.sha256[:12]})")
        return tokenizer, warnings

    def _writer(self, directory: Path, split: Split, tokenizer: Tokenizer) -> SplitWriter:
        return SplitWriter(directory, split, tokenizer.vocab_size, self._files)

    def _meta(
        self,
        directory: Path,
        tokenizer: Tokenizer,
        parts: Mapping[Split, Sequence[Part]],
        *,
        description: str,
        n_documents: int | None,
        warnings: tuple[str, ...],
        sifted: Sifted | None = None,
    ) -> Meta:
        """Save the tokenizer beside the tokens, if it is not there yet, and describe both."""
        if not (directory / TOKENIZER_FOLDER).exists():
            self._save_tokenizer(directory, tokenizer)
        return Meta(
            format=FORMAT,
            description=description,
            tokenizer_name=tokenizer.name,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            n_documents=n_documents,
            warnings=warnings,
            train=tuple(parts["train"]),
            val=tuple(parts["val"]),
            key=self._key,
            sifted=sifted,
        )

    def _save_tokenizer(self, directory: Path, tokenizer: Tokenizer) -> None:
        folder = directory / TOKENIZER_FOLDER
        self._files.mkdir(folder)
        tokenizer.save(folder, self._files)


def _all_dropped(report: Sifted | None) -> str:
    if report is None or not report.dropped:
        return ""
    counts = ", ".join(f"{dropped.documents} {reason}" for reason, dropped in report.dropped.items())
    return f" that is kept (dropped: {counts})"


def _hold_out_tail(train: Sequence[Part], val_fraction: float) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Without validation shards: the last `val_fraction` of all tokens, at most the whole last shard but a token."""
    *earlier, last = train
    total = sum(part.n_tokens for part in train)
    held = min(max(1, round(total * val_fraction)), last.n_tokens - 1)
    cut = last.n_tokens - held
    kept = msgspec.structs.replace(last, stop=cut)
    return (*earlier, kept), (msgspec.structs.replace(last, start=cut),)


def _other_tokenizer(source: ShardSource, beside: Tokenizer, asked_for: str) -> DataError:
    own = str(source.train[0].parent) if isinstance(beside, LibraryTokenizer) else beside.name
    return DataError(
        f"the shards at {source.name} were made with the tokenizer {beside.name!r} ({beside.sha256[:12]}), {asked_for}",
        f"set data.tokenizer={own}",
    )
