"""`prepare`: from a run's configuration to memory-mapped tokens, through the user's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gpuworkbench.config.schema import DataConfig, RunConfig
from gpuworkbench.data import cache
from gpuworkbench.data.builder import Builder
from gpuworkbench.data.checks import check_fits, check_scored, check_vocabulary
from gpuworkbench.data.corpora.documents import fingerprint_of
from gpuworkbench.data.encoding import Progress, check_tokenizer_name, pin_tokenizer
from gpuworkbench.data.location import cache_root
from gpuworkbench.data.meta import FORMAT
from gpuworkbench.data.pipeline import Pace
from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.sources import ShardSource, Source, TextSource, resolve_source, with_vocabulary
from gpuworkbench.data.tokenization.tokenizer import Tokenizer
from gpuworkbench.errors import DataError
from gpuworkbench.io import REAL_FILES, Files

TEXT_KEYS = ("documents", "clean", "normalize", "min_chars", "dedup")


def prepare(
    config: RunConfig,
    *,
    cache_dir: Path | None = None,
    on_progress: Progress | None = None,
    kept_tokenizer: Path | None = None,
    files: Files = REAL_FILES,
) -> PreparedData:
    """Find or make the tokens that `config.data` names, and check that they fit the model and the loop.

    `kept_tokenizer` is the folder of a run's own, for when the path that `data.tokenizer` names is gone.
    `on_progress(message, fraction or None)` is called while something is made. Raises DataError in one line for data
    that is missing, malformed or too small, for a vocabulary that cannot be had, and for a cache that cannot be
    written.
    """

    def check_tokenizer(tokenizer: Tokenizer) -> None:  # now, not after hours of encoding
        check_vocabulary(config, tokenizer.name, tokenizer.vocab_size)

    prepared = prepare_data(
        with_vocabulary(config),
        cache_dir=cache_dir,
        on_progress=on_progress,
        check_tokenizer=check_tokenizer,
        kept_tokenizer=kept_tokenizer,
        files=files,
    )
    check_fits(config, prepared)
    check_scored(config, prepared)
    return prepared


def prepare_data(
    config: DataConfig,
    *,
    out: Path | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    on_progress: Progress | None = None,
    pace: Pace | None = None,
    check_tokenizer: Callable[[Tokenizer], None] | None = None,
    kept_tokenizer: Path | None = None,
    files: Files = REAL_FILES,
) -> PreparedData:
    """Find or make the tokens of a `data` section, in the cache or as the folder `out`. Raises DataError as `prepare`.

    `workers` threads encode (default: the cores there are); the tokens do not depend on it. `check_tokenizer` may
    refuse a tokenizer before text is encoded with it. Interrupted, by a signal or a full disk, it goes on where it was
    when it is called again.
    """
    report = on_progress or (lambda message, fraction: None)
    root = cache_root(cache_dir)
    check_tokenizer_name(config.tokenizer)
    try:
        config = pin_tokenizer(config, root, kept_tokenizer, report, files)
    except OSError as error:
        raise cache.cannot_write(root, error) from error
    source = resolve_source(config, root, report)
    _check_text_keys(config, source)
    key = _key(config, source)
    home = Path(os.path.abspath(root)) / "data" / key if out is None else Path(os.path.abspath(out.expanduser()))
    if (prepared := cache.find(home)) is not None and (out is None or prepared.key == key):
        return prepared
    builder = Builder(
        config,
        root,
        key,
        files,
        report,
        workers=workers,
        pace=pace,
        check_tokenizer=check_tokenizer,
        is_for_elsewhere=out is not None,
    )
    try:
        if out is not None:
            _check_out(home, source)
        home.parent.mkdir(parents=True, exist_ok=True)
        if out is None:
            cache.sweep(home.parent, files)
        return builder.build(home, source)
    except OSError as error:
        raise cache.cannot_write(home.parent, error, is_cache=out is None) from error


def _key(config: DataConfig, source: Source) -> str:
    """Names everything that determines the tokens."""
    cleaning = [getattr(config, name) for name in TEXT_KEYS]
    parts = (FORMAT, source.fingerprint, config.tokenizer, config.val_fraction, config.seed, *cleaning)
    return fingerprint_of(*parts)[:32]


def _check_text_keys(config: DataConfig, source: Source) -> None:
    """DataError for a key that cleans text where there is none to clean."""
    if isinstance(source, TextSource):
        return
    for name in TEXT_KEYS:
        value, default = getattr(config, name), getattr(DataConfig(), name)
        if value != default:
            shown = str(value).lower()
            raise DataError(
                f"data.{name} = {shown} cleans text, data.source = {config.source!r} is tokens already",
                f"set data.{name}={str(default).lower()}, or prepare the text with it",
            )


def _check_out(home: Path, source: Source) -> None:
    """DataError where `home` cannot become a folder of shards of that source."""
    if isinstance(source, ShardSource):
        raise DataError(f"{source.name} is token shards already", "use it as data.source as it is, without --out")
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise DataError(f"--out {home} is there already and holds something else", "name a new folder, or remove it")
    root = getattr(source.corpus, "root", None) if isinstance(source, TextSource) else None
    if root is not None and home.is_relative_to(root):
        raise DataError(f"--out {home} is inside of the source {root}", "name a folder elsewhere")
