"""The published vocabularies that tiktoken knows by name (`gpt2`, `cl100k_base`, ...), or a quick, clear refusal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpuworkbench.data.location import OFFLINE_FLAGS
from gpuworkbench.data.tokenization import tiktoken_files
from gpuworkbench.data.tokenization.tiktoken_files import OnProgress, VocabularyError, VocabularyFiles, cache_folder
from gpuworkbench.data.tokenization.tokenizer import EOT_TEXT, BpeTokenizer
from gpuworkbench.errors import DataError

_LOOK_INTERVAL_S = 0.1
_PATCH_LOCK = threading.Lock()


def encoding_names() -> list[str]:
    """Names that `data.tokenizer` may have beside `byte` and `bpe-N`."""
    import tiktoken

    return sorted(tiktoken.list_encoding_names())


def tiktoken_tokenizer(name: str, on_progress: OnProgress | None = None) -> BpeTokenizer:
    """A published vocabulary as our tokenizer. DataError when its files are neither cached nor downloadable."""
    encoding = _load_in_time(name, on_progress or (lambda message, fraction: None))
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    tokens = [b""] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        tokens[rank] = token
    return BpeTokenizer(
        name,
        tokens,
        eot_id=encoding._special_tokens[EOT_TEXT],
        vocab_size=encoding.n_vocab,
        pattern=encoding._pat_str,
    )


def _load_in_time(name: str, report: OnProgress) -> Any:
    """`tiktoken.get_encoding`, in a thread that is left behind if not even the name lookup answers."""
    outcome: dict[str, Any] = {}
    done = threading.Event()
    files = VocabularyFiles(report)

    def work() -> None:
        import tiktoken

        try:
            with _own_files(files):
                outcome["encoding"] = tiktoken.get_encoding(name)
        except Exception as error:  # noqa: BLE001 - whatever requests, tiktoken or the disk raise is one refusal
            outcome["error"] = error
        finally:
            done.set()

    threading.Thread(target=work, name=f"tiktoken-{name}", daemon=True).start()
    while not done.wait(_LOOK_INTERVAL_S):
        if files.asked_s is not None and time.monotonic() - files.asked_s > 2 * tiktoken_files.CONNECT_LIMIT_S:
            break
    if "encoding" in outcome:
        return outcome["encoding"]
    error = outcome.get("error")
    raise DataError(
        f"the vocabulary {name!r} is not in {cache_folder() or 'a cache'} and cannot be downloaded ({_reason(error)})",
        f"go online once, set TIKTOKEN_CACHE_DIR, or use {OFFLINE_FLAGS}",
    ) from error


def _reason(error: Exception | None) -> str:
    if error is None:
        return "no answer"
    return str(error) if isinstance(error, VocabularyError) else type(error).__name__


@contextmanager
def _own_files(files: VocabularyFiles) -> Iterator[None]:
    """Let tiktoken get its files through `files`."""
    from tiktoken import load

    with _PATCH_LOCK:
        original = load.read_file_cached
        load.read_file_cached = files.read
        try:
            yield
        finally:
            load.read_file_cached = original
