"""Making a prepared directory: encode text, generate a chain, or check shards that are used in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data import cache
from gpuworkbench.data.documents import TextCorpus
from gpuworkbench.data.encoding import Progress, encode_corpus, make_tokenizer
from gpuworkbench.data.mask import scan_mask
from gpuworkbench.data.meta import FORMAT, Meta, Part
from gpuworkbench.data.prepared import TOKENIZER_FOLDER, PreparedData
from gpuworkbench.data.shards import TokenCheck, map_shard, scan_shard
from gpuworkbench.data.sources import ShardSource, Source, SyntheticSource, TextSource, resolve_source
from gpuworkbench.data.split import SPLITS, Split, splitter_for
from gpuworkbench.data.split_writer import SplitWriter, whole_shard
from gpuworkbench.data.synthetic import ENTROPY_RATE_NATS, synthetic_blocks
from gpuworkbench.data.tokenizer import Tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import Files


class Builder:
    """Makes one prepared directory."""

    def __init__(self, config: DataConfig, root: Path, files: Files, report: Progress) -> None:
        self._config = config
        self._root = root
        self._files = files
        self._report = report

    def build(self, home: Path, source: Source) -> PreparedData:
        """Encode, generate or scan; then commit. DataError if the source changed meanwhile."""

        def fill(directory: Path) -> Meta:
            match source:
                case TextSource():
                    meta = self._encode_text(directory, source.corpus)
                case SyntheticSource():
                    meta = self._generate(directory, source)
                case ShardSource():
                    meta = self._scan(directory, source)
            if resolve_source(self._config, self._root).fingerprint != source.fingerprint:
                raise DataError(f"data.source = {self._config.source!r} changed while it was read", "start again")
            return meta

        return cache.build(home, fill, self._files)

    def _encode_text(self, directory: Path, corpus: TextCorpus) -> Meta:
        splitter = splitter_for(corpus, self._config.val_fraction, self._config.seed)
        tokenizer, warnings = make_tokenizer(self._config.tokenizer, corpus, splitter, self._report)
        self._report(f"encoding with {tokenizer.name}", 0.0)
        with self._writer(directory, "train", tokenizer) as train, self._writer(directory, "val", tokenizer) as val:
            writers: dict[Split, SplitWriter] = {"train": train, "val": val}
            n_documents = encode_corpus(corpus, splitter, tokenizer, writers, self._report)
            parts: dict[Split, tuple[Part, ...]] = {split: writers[split].finish() for split in SPLITS}
        if not n_documents:
            raise DataError(f"{corpus.description} holds no text")
        return self._meta(
            directory,
            tokenizer,
            parts,
            description=corpus.description,
            n_documents=n_documents,
            warnings=corpus.warnings + warnings,
        )

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
        counts = {
            path: len(map_shard(path, source.raw_dtype)) for path in (*source.train, *source.val)
        }  # every header first: quick
        vocab_size = self._config.bin_vocab_size
        tokenizer, warnings = make_tokenizer(self._config.tokenizer, None, None, self._report, vocab_size)
        check = TokenCheck.of(tokenizer, vocab_size, source.raw_dtype)
        total, done, n_documents = sum(counts.values()), 0, 0

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
    ) -> Meta:
        """Save the tokenizer beside the tokens and describe both."""
        folder = directory / TOKENIZER_FOLDER
        self._files.mkdir(folder)
        tokenizer.save(folder, self._files)
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
        )


def _hold_out_tail(train: Sequence[Part], val_fraction: float) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Without validation shards: the last `val_fraction` of all tokens, at most the whole last shard but a token."""
    *earlier, last = train
    total = sum(part.n_tokens for part in train)
    held = min(max(1, round(total * val_fraction)), last.n_tokens - 1)
    cut = last.n_tokens - held
    kept = msgspec.structs.replace(last, stop=cut)
    return (*earlier, kept), (msgspec.structs.replace(last, start=cut),)
