"""tiktoken's vocabularies from a server on the loopback: once, checked, kept, and refused in one line."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiktoken import load, registry

from gpuworkbench.data.encoding import make_tokenizer
from gpuworkbench.data.tokenization import tiktoken_files
from gpuworkbench.data.tokenization.tiktoken_names import tiktoken_tokenizer
from gpuworkbench.data.tokenization.tokenizer import EOT_TEXT, GPT2_PATTERN
from gpuworkbench.errors import DataError

NAME = "loopback_base"
TOKENS = [bytes([value]) for value in range(256)] + [b"th", b"the"]
CONTENT = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(TOKENS))
VARIABLES = (*tiktoken_files.CACHE_VARIABLES, "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")


class Server:
    """Answers every request with `content`, or as `fault` says."""

    def __init__(self) -> None:
        self.fault = ""
        self.n_requests = 0
        self.is_gone = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.n_requests += 1
                content = CONTENT.replace(b"dGhl", b"dGhm") if server.fault == "wrong" else CONTENT
                self.send_response(404 if server.fault == "404" else 200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:1000] if server.fault == "truncated" else content)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        port = 9 if self.is_gone else self.http.server_address[1]  # the discard port: nobody listens
        return f"http://127.0.0.1:{port}/encodings/{NAME}.tiktoken"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    running = Server()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUWORKBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    registry.list_encoding_names()  # fills the table of names

    def constructor() -> dict[str, object]:
        ranks = load.load_tiktoken_bpe(running.address, hashlib.sha256(CONTENT).hexdigest())
        return {
            "name": NAME,
            "pat_str": GPT2_PATTERN,
            "mergeable_ranks": ranks,
            "special_tokens": {EOT_TEXT: len(TOKENS)},
        }

    assert registry.ENCODING_CONSTRUCTORS is not None
    monkeypatch.setitem(registry.ENCODING_CONSTRUCTORS, NAME, constructor)
    yield running
    registry.ENCODINGS.pop(NAME, None)
    running.http.shutdown()
    running.http.server_close()


def loaded() -> list[int]:
    """The vocabulary loaded anew: its ids of a text."""
    registry.ENCODINGS.pop(NAME, None)
    return tiktoken_tokenizer(NAME).encode("the that")


IDS = [257, 32, 256, 97, 116]


def refusal() -> str:
    registry.ENCODINGS.pop(NAME, None)
    with pytest.raises(DataError) as caught:
        tiktoken_tokenizer(NAME)
    line = caught.value.line()
    assert "TIKTOKEN_CACHE_DIR" in line
    assert "--set data.source=stdlib --set data.tokenizer=bpe-8192" in line
    return line


def test_a_vocabulary_is_downloaded_once_and_kept(server: Server, tmp_path: Path) -> None:
    messages: list[tuple[str, float | None]] = []
    tokenizer, warnings = make_tokenizer(NAME, None, None, lambda *each: messages.append(each))
    assert (tokenizer.vocab_size, tokenizer.eot_id, warnings) == (259, 258, ())
    assert messages[-1] == (f"downloading {NAME}.tiktoken", 1.0)
    assert loaded() == IDS
    assert server.n_requests == 1
    (kept,) = (tmp_path / "cache" / "tiktoken").iterdir()
    assert (kept.name, kept.read_bytes()) == (tiktoken_files.file_name(server.address), CONTENT)


def test_the_variables_name_the_cache(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And tiktoken itself finds the file there."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "mine"))
    assert loaded() == IDS
    assert load.read_file_cached(server.address) == CONTENT
    assert server.n_requests == 1
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken's word for no cache
    assert loaded() == IDS
    assert server.n_requests == 2


def test_what_tiktoken_cached_before_is_used(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "tmp" / "data-gym-cache"
    folder.mkdir(parents=True)
    (folder / tiktoken_files.file_name(server.address)).write_bytes(CONTENT)
    assert loaded() == IDS
    assert server.n_requests == 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "FIFO", "folder"])
def test_a_damaged_cache_is_replaced(damage: str, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tiktoken" / tiktoken_files.file_name(server.address)
    path.parent.mkdir(parents=True)
    match damage:
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.write_bytes({"flip": b"!" + CONTENT[1:], "truncate": CONTENT[:99], "empty": b""}[damage])
    assert loaded() == IDS
    if damage != "folder":
        assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["a file in the way", "read-only"])
def test_a_cache_that_cannot_be_written_costs_no_more_than_a_download(
    place: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    if place == "read-only":
        folder = Path("/proc/self/tiktoken")  # nobody may write here, root neither
    else:
        folder.write_text("in the way")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    messages: list[str] = []
    registry.ENCODINGS.pop(NAME, None)
    tokenizer = tiktoken_tokenizer(NAME, lambda message, _: messages.append(message))
    assert tokenizer.encode("the that") == IDS
    assert messages[-1].startswith(f"the vocabulary is not kept in {folder}: ")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("404", "HTTP 404 for http://127.0.0.1"), ("wrong", "has another hash"), ("truncated", "ChunkedEncodingError")],
)
def test_bad_downloads_are_refused_and_not_kept(fault: str, reason: str, server: Server, tmp_path: Path) -> None:
    server.fault = fault
    line = refusal()
    assert reason in line
    assert f"is not in {tmp_path / 'cache' / 'tiktoken'}" in line
    assert not (tmp_path / "cache").exists()
    server.fault = ""
    assert loaded() == IDS, "the next call is none the worse"


def test_a_dead_proxy_and_a_dead_server_are_told_apart(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.is_gone = True
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert "(ConnectionError)" in refusal()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "(ProxyError)" in refusal()


def test_huge_files_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_files, "MAX_FILE_BYTES", 500)
    assert "is larger than 500 B" in refusal()
