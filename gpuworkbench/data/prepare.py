"""`prepare`: from a run's configuration to memory-mapped tokens, through the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from gpuworkbench.config.schema import DataConfig, RunConfig
from gpuworkbench.data import cache
from gpuworkbench.data.builder import Builder
from gpuworkbench.data.checks import check_fits, check_scored
from gpuworkbench.data.documents import fingerprint_of
from gpuworkbench.data.encoding import Progress, check_tokenizer_name
from gpuworkbench.data.location import cache_root
from gpuworkbench.data.meta import FORMAT
from gpuworkbench.data.prepared import PreparedData
from gpuworkbench.data.sources import Source, resolve_source, with_vocabulary
from gpuworkbench.io import REAL_FILES, Files


def prepare(
    config: RunConfig, *, cache_dir: Path | None = None, on_progress: Progress | None = None, files: Files = REAL_FILES
) -> PreparedData:
    """Find or make the tokens that `config.data` names, and check that they fit the model and the loop.

    `on_progress(message, fraction or None)` is called while something is made. Raises DataError in one line for data
    that is missing, malformed or too small, for a vocabulary that cannot be had, and for a cache that cannot be
    written.
    """
    report = on_progress or (lambda message, fraction: None)
    root = cache_root(cache_dir)
    check_tokenizer_name(config.data.tokenizer)
    data = with_vocabulary(config)
    source = resolve_source(data, root)
    home = Path(os.path.abspath(root)) / "data" / _key(data, source)
    prepared = cache.find(home)
    if prepared is None:
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with cache.exclusive(home.with_suffix(".lock"), report):
                prepared = cache.find(home) or Builder(data, root, files, report).build(home, source)
        except OSError as error:
            raise cache.cannot_write(home.parent, error) from error
    check_fits(config, prepared)
    check_scored(config, prepared)
    return prepared


def _key(config: DataConfig, source: Source) -> str:
    """Names everything that determines the tokens."""
    return fingerprint_of(FORMAT, source.fingerprint, config.tokenizer, config.val_fraction, config.seed)[:32]
