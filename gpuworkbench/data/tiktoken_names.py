"""The published vocabularies that tiktoken knows by name (`gpt2`, `cl100k_base`, ...), or a quick, clear refusal.

tiktoken reads its vocabulary files from TIKTOKEN_CACHE_DIR and else downloads them with no time limit. Here the
download has limits, so that a machine without a network says so within seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpuworkbench.data.location import OFFLINE_FLAGS
from gpuworkbench.data.tokenizer import EOT_TEXT, BpeTokenizer
from gpuworkbench.errors import DataError

CONNECT_LIMIT_S = 5.0
READ_LIMIT_S = 15.0
_PATCH_LOCK = threading.Lock()


def encoding_names() -> list[str]:
    """Names that `data.tokenizer` may have beside `byte` and `bpe-N`."""
    import tiktoken

    return sorted(tiktoken.list_encoding_names())


def tiktoken_tokenizer(name: str) -> BpeTokenizer:
    """A published vocabulary as our tokenizer. DataError when its files are neither cached nor downloadable."""
    encoding = _load_in_time(name)
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


def _load_in_time(name: str) -> Any:
    """`tiktoken.get_encoding`, in a thread that is left behind if not even the name lookup answers."""
    outcome: dict[str, Any] = {}
    connected = threading.Event()
    done = threading.Event()

    def work() -> None:
        import tiktoken

        try:
            with _limited_downloads(connected):
                outcome["encoding"] = tiktoken.get_encoding(name)
        except Exception as error:  # noqa: BLE001 - whatever requests, tiktoken or the disk raise is one refusal
            outcome["error"] = error
        finally:
            connected.set()
            done.set()

    threading.Thread(target=work, name=f"tiktoken-{name}", daemon=True).start()
    if connected.wait(2 * CONNECT_LIMIT_S):
        done.wait()
    if "encoding" in outcome:
        return outcome["encoding"]
    error = outcome.get("error")
    reason = type(error).__name__ if error is not None else "no answer"
    raise DataError(
        f"the vocabulary {name!r} is not in TIKTOKEN_CACHE_DIR and cannot be downloaded ({reason})",
        f"go online once, set TIKTOKEN_CACHE_DIR, or use {OFFLINE_FLAGS}",
    ) from error


@contextmanager
def _limited_downloads(connected: threading.Event) -> Iterator[None]:
    """Give tiktoken's downloads a time limit; `connected` is set once a server answers or no download is needed."""
    from tiktoken import load

    def read_file(blobpath: str) -> bytes:
        import requests

        if "://" not in blobpath:
            return original(blobpath)
        with requests.get(blobpath, timeout=(CONNECT_LIMIT_S, READ_LIMIT_S), stream=True) as response:
            connected.set()
            response.raise_for_status()
            return response.content

    with _PATCH_LOCK:
        original = load.read_file
        load.read_file = read_file
        try:
            yield
        finally:
            load.read_file = original
