"""The arguments of `gpuworkbench data prepare` and `gpuworkbench data inspect`. Nothing heavy: `--help` is quick.

The keys' values stay as they are written: the configuration knows their ranges.
"""

from __future__ import annotations

import argparse


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data prepare`."""
    parser.add_argument("source", metavar="SOURCE", help="a text, JSONL or parquet file, a folder, stdlib, synthetic")
    parser.add_argument("--out", metavar="DIR", help="write a folder of token shards instead of the cache")
    _add_keys(parser)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data inspect`."""
    parser.add_argument("source", metavar="SOURCE|RUN", help="a source, a prepared folder, token shards, or a run")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="documents to show (3)")
    _add_keys(parser)


def _add_keys(parser: argparse.ArgumentParser) -> None:
    keys = parser.add_argument_group("how text becomes tokens (the same keys as a run's)")
    keys.add_argument("--tokenizer", metavar="NAME", help="data.tokenizer: byte, bpe-N, gpt2, a path, ... (bpe-8192)")
    keys.add_argument("--documents", metavar="HOW", help="data.documents: file, paragraph or line (file)")
    keys.add_argument("--clean", action="store_true", default=None, help="data.clean: line ends, control characters")
    keys.add_argument("--normalize", metavar="FORM", help="data.normalize: none, nfc or nfkc (none)")
    keys.add_argument("--min-chars", metavar="N", help="data.min_chars: drop shorter documents (0)")
    keys.add_argument("--dedup", action="store_true", default=None, help="data.dedup: drop documents seen before")
    keys.add_argument("--val-fraction", metavar="F", help="data.val_fraction: share held out (0.05)")
    keys.add_argument("--seed", metavar="S", help="data.seed: of the split (0)")
    keys.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="data_sets", help="any other key of [data]"
    )
    keys.add_argument("--workers", type=int, metavar="N", help="threads that encode (default: the cores here)")
