"""Preparing text against tiktoken alone: does reading, cleaning, hashing and writing cost anything beside encoding?

    python -m benchmarks.data_prepare [--rounds 5] [--data DIR]

On one core (affinity), CPU seconds of the whole process, both sides interleaved, medians over rounds. Ours is
`prepare_data` with one worker, from the file to the committed directory; the other side is tiktoken's
`encode_ordinary_batch` with one thread on the same documents, already in memory. `ratio` above 0.9 is the target
where documents are whole files. DIR holds peps.txt, rust_book.txt and tiktoken/. Also tokens a second on all cores,
by wall clock. Stored as benchmarks/results/data_prepare.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._record import environment, write_result
from gpuworkbench.config.schema import DataConfig
from gpuworkbench.data import PreparedData
from gpuworkbench.data.prepare import prepare_data
from gpuworkbench.data.sources import TextSource, resolve_source

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
FILES = ("peps.txt", "rust_book.txt")
CASES: tuple[dict[str, Any], ...] = (
    {"tokenizer": "gpt2"},
    {"tokenizer": "gpt2", "documents": "paragraph"},
    {"tokenizer": "gpt2", "documents": "paragraph", "dedup": True, "clean": True, "normalize": "nfc"},
    {"tokenizer": "bpe-8192"},
    {"tokenizer": "byte"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(arguments.data / "tiktoken"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "text"
        folder.mkdir()
        for name in FILES:
            (folder / name).write_bytes((arguments.data / name).read_bytes())
        results = [measure(DataConfig(source=str(folder), **case), case, arguments.rounds) for case in CASES]
        n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    result = {
        "environment": environment("tiktoken", "tokenizers", "numpy"),
        "text": {"files": FILES, "bytes": n_bytes},
        "rounds": arguments.rounds,
        "results": results,
    }
    print(write_result("data_prepare", result).read_text())


def measure(config: DataConfig, case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """One case: CPU seconds of both sides on one core, and tokens a second on all cores."""
    texts = documents(config)
    prepared, _, _ = prepared_in(config, workers=1)
    n_tokens = prepared.n_train_tokens + prepared.n_val_tokens
    reference = tiktoken_alone(prepared, texts)
    ours: list[float] = []
    theirs: list[float] = []
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        for _ in range(rounds):
            ours.append(prepared_in(config, workers=1)[1])
            if reference is not None:
                theirs.append(cpu_seconds(reference))
    finally:
        os.sched_setaffinity(0, cores)
    wall = [prepared_in(config, workers=len(cores))[2] for _ in range(rounds)]
    return {
        "keys": case,
        "tokens": n_tokens,
        "ours_cpu_s": [round(value, 4) for value in ours],
        "tiktoken_cpu_s": [round(value, 4) for value in theirs],
        "ratio": statistics.median(theirs) / statistics.median(ours) if theirs else None,
        "tokens_per_s_one_core": n_tokens / statistics.median(ours),
        "tokens_per_s_all_cores": n_tokens / statistics.median(wall),
        "cores": len(cores),
    }


def documents(config: DataConfig) -> list[str]:
    """The source's documents, whole, as tiktoken's user would have them."""
    source = resolve_source(config, Path())
    assert isinstance(source, TextSource)
    return ["".join(document.chunks) for document in source.corpus.documents()]


def prepared_in(config: DataConfig, workers: int) -> tuple[PreparedData, float, float]:
    """A preparation from nothing: what it made, CPU and wall seconds. A trained vocabulary's training is left out."""
    begun: list[tuple[float, float]] = []

    def note(stage: str, _: float | None) -> None:
        if stage.startswith("encoding") and not begun:
            begun.append((time.process_time(), time.perf_counter()))

    with tempfile.TemporaryDirectory() as cache:
        start = time.process_time(), time.perf_counter()
        prepared = prepare_data(config, cache_dir=Path(cache), workers=workers, on_progress=note)
        end = time.process_time(), time.perf_counter()
        prepared.tokenizer()  # loaded while the folder is there
        start = begun[0] if config.tokenizer.startswith("bpe-") else start
    return prepared, end[0] - start[0], end[1] - start[1]


def tiktoken_alone(prepared: PreparedData, texts: list[str]) -> Callable[[], object] | None:
    """`encode_ordinary_batch` of the same vocabulary; None for bytes."""
    import tiktoken

    from gpuworkbench.data.tokenization.bpe import train_bpe
    from gpuworkbench.data.tokenization.tokenizer import BpeTokenizer

    name = prepared.tokenizer_name
    if name == "byte":
        return None
    if name.startswith("bpe-"):
        ours = train_bpe(texts, int(name.removeprefix("bpe-")))
        assert isinstance(ours, BpeTokenizer)
        encoding = ours._encoding
    else:
        encoding = tiktoken.get_encoding(name)
    return lambda: encoding.encode_ordinary_batch(texts, num_threads=1)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
