"""Downloads from a hub on the loopback: whole, resumed, cached, and refused in one line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuworkbench.data import hub
from gpuworkbench.data.hub import Wanted, cached_files, fetch, hub_cache
from gpuworkbench.errors import DataError, DoesNotFitError
from tests.fixtures.hub_server import Faults, HubServer

pytest.importorskip("huggingface_hub")

LARGE = random.Random(0).randbytes(600_000)
REPOSITORY = {"config.json": b"{}", "model.safetensors": LARGE, "extra/notes.txt": b"notes"}
DATA = {f"set_train_{i:06d}.bin": random.Random(i).randbytes(5000 + i) for i in (2, 1, 3)} | {
    "set_val_000000.bin": b"v"
}


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def server(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({"owner/model": REPOSITORY, "datasets/owner/set": DATA}, faults) as running:
        for name, value in running.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield running


def refused(*filenames: str | Wanted, repo_id: str = "owner/model", **options: str) -> str:
    """The line of a download that is refused; nothing but its cache is touched, and no hub file is half there."""
    with pytest.raises(DataError) as caught:
        fetch(repo_id, filenames or ("model.safetensors",), **options)  # type: ignore[arg-type]
    assert not cached_files(repo_id, "*")
    return caught.value.line()


def test_files_arrive_whole_and_are_found_again(server: HubServer, tmp_path: Path) -> None:
    said: list[tuple[str, float | None]] = []
    paths = fetch("owner/model", ["config.json", "*.safetensors"], on_progress=lambda *each: said.append(each))
    assert [path.read_bytes() for path in paths] == [b"{}", LARGE]
    assert all(path.is_relative_to(tmp_path / "hf" / "hub" / "models--owner--model") for path in paths)
    assert said[0][0].startswith("2 files, 585.9 KiB, to download from owner/model to ")
    assert cached_files("owner/model", "*.safetensors") == [paths[1]]
    n_requests = len(server.gets("model.safetensors"))
    assert fetch("owner/model", ["config.json", "*.safetensors"]) == paths
    assert len(server.gets("model.safetensors")) == n_requests


def test_the_library_finds_them_offline(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is huggingface_hub's own: transformers and others share it."""
    (path,) = fetch("owner/model", ["model.safetensors"])
    code = "from huggingface_hub import hf_hub_download; print(hf_hub_download('owner/model', 'model.safetensors'))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(path)


def test_patterns_limits_and_optional_files(server: HubServer) -> None:
    wanted = [Wanted("*_train_*.bin", limit=2), Wanted("*_val_*"), Wanted("readme", required=False)]
    paths = fetch("owner/set", wanted, "dataset")
    assert [path.name for path in paths] == ["set_train_000001.bin", "set_train_000002.bin", "set_val_000000.bin"]
    assert [path.read_bytes() for path in paths] == [DATA[path.name] for path in paths]
    assert "holds 3 files *_train_*, 9 are wanted" in refused(
        Wanted("*_train_*", limit=9), repo_id="owner/set", repo_type="dataset", revision="main"
    )


def test_a_cut_connection_is_gone_on_with(server: HubServer, faults: Faults) -> None:
    faults.cut_after_bytes["model.safetensors"] = 300_000
    (path,) = fetch("owner/model", ["model.safetensors"])
    assert path.read_bytes() == LARGE
    assert [request.range for request in server.gets("model.safetensors")] == [None, "bytes=262144-"]


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_killed_download_is_gone_on_with(
    ignore_range: bool, server: HubServer, faults: Faults, tmp_path: Path
) -> None:
    faults.hold = threading.Event()
    code = "from gpuworkbench.data.hub import fetch\nfetch('owner/model', ['model.safetensors'])"
    with subprocess.Popen([sys.executable, "-c", code]) as killed:
        assert server.body_begun.wait(60)
        partial = _wait_for_partial(tmp_path, 262_144)
        (child,) = _children(killed.pid)
        os.kill(child, signal.SIGKILL)
        killed.kill()
    faults.hold.set()
    faults.hold, faults.ignore_range = None, ignore_range
    assert not cached_files("owner/model", "*")
    (path,) = fetch("owner/model", ["model.safetensors"])
    assert path.read_bytes() == LARGE
    assert server.gets("model.safetensors")[-1].range == "bytes=262144-"
    assert not partial.exists()


def _wait_for_partial(home: Path, size: int) -> Path:
    deadline = threading.Event()
    for _ in range(600):
        found = [path for path in home.rglob("*.gpuworkbench-partial") if path.stat().st_size >= size]
        if found:
            return found[0]
        deadline.wait(0.05)
    raise AssertionError("nothing was downloaded")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_partial_file_of_other_bytes_is_replaced(server: HubServer, tmp_path: Path) -> None:
    """A damaged or foreign part costs a second download, never a wrong file."""
    (path,) = fetch("owner/model", ["model.safetensors"])
    blob = path.resolve()
    blob.rename(blob.with_name(blob.name + ".gpuworkbench-partial")).write_bytes(b"x" * 1000)
    path.unlink()
    (again,) = fetch("owner/model", ["model.safetensors"])
    assert again.read_bytes() == LARGE


def _gate(faults: Faults) -> None:
    faults.gated.add("owner/model")


def _break(faults: Faults) -> None:
    faults.status["/revision/main"] = 503


def _break_storage(faults: Faults) -> None:
    faults.status["model.safetensors"] = 500


def _corrupt(faults: Faults) -> None:
    faults.corrupt.add("model.safetensors")


def _resize(faults: Faults) -> None:
    faults.wrong_size.add("model.safetensors")


def _need_token(faults: Faults) -> None:
    faults.token = "secret"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_gate, "owner/model is gated; accept its terms at http://127.0.0.1"),
        (_break, "answers HTTP 503 for owner/model; try again later"),
        (_break_storage, "answers HTTP 500 for owner/model"),
        (_corrupt, "has another hash than"),
        (_resize, "should be of size 600001 but has size 600000"),
        (_need_token, "owner/model is not on http://127.0.0.1"),
    ],
)
def test_refusals(fault: Callable[[Faults], None], reason: str, server: HubServer, faults: Faults) -> None:
    fault(faults)
    line = refused(instead="use --set data.source=stdlib")
    assert reason in line
    assert line.endswith("use --set data.source=stdlib")


def test_a_token_is_sent_to_the_hub_alone(server: HubServer, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    (path,) = fetch("owner/model", ["model.safetensors"])
    assert path.read_bytes() == LARGE
    sent = {"storage" if each.path.startswith("/storage/") else "hub": each.authorization for each in server.requests}
    assert sent == {"hub": "Bearer secret", "storage": None}


def test_missing_repository_and_file(server: HubServer) -> None:
    assert "nobody/nothing is not on http://127.0.0.1" in refused(repo_id="nobody/nothing")
    assert "holds 0 files absent.json, 1 are wanted" in refused("absent.json")
    assert "is no repository name" in refused(repo_id="a/b/c/d")


def test_offline(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "and HF_HUB_OFFLINE is set; do without" in refused(instead="do without")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "owner/model cannot be downloaded from http://127.0.0.1:9 (ConnectError" in refused()
    assert server.requests == []


def test_a_hub_that_never_answers(
    server: HubServer, faults: Faults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "FIRST_ANSWER_LIMIT_S", 0.05)
    assert "gives no answer within" in refused()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'gpuworkbench[hf]', or do without" in refused(instead="do without")


def test_a_full_disk_is_told_before_downloading(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gpuworkbench.tools import fetch as tool

    monkeypatch.setattr(tool, "disk_free_bytes", lambda path: 1000)
    emitted: list[dict[str, object]] = []
    monkeypatch.setattr(tool, "emit", emitted.append)
    request = hub.FetchRequest(repo_id="owner/model", wanted=(Wanted("*.safetensors"),))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", _listing)
    with pytest.raises(DoesNotFitError, match=r"293.0 KiB to download, 1000 B are free"):
        tool.fetch(request)
    assert emitted[0]["plan"] == {"n_files": 1, "num_bytes": 300_000, "folder": str(tmp_path), "free_bytes": 1000}


def _listing(*_: object, **__: object) -> object:
    from huggingface_hub.hf_api import ModelInfo

    return ModelInfo(id="owner/model", sha="0" * 40, siblings=[{"rfilename": "a.safetensors", "size": 300_000}])


CACHES: list[dict[str, str]] = [
    {},
    {"HF_HOME": "/a"},
    {"HF_HUB_CACHE": "/b"},
    {"XDG_CACHE_HOME": "/c"},
    {"HF_HOME": "$HOME/d", "HOME": "/e"},
    {"HF_HOME": "~/f", "HF_HUB_CACHE": "$HF_HOME/g"},
]


def test_the_cache_is_where_the_library_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    code = (
        "import importlib, json, os, sys\n"
        "from huggingface_hub import constants\n"
        "for variables in json.loads(sys.argv[1]):\n"
        "    before = dict(os.environ)\n"
        "    os.environ.update(variables)\n"
        "    print(importlib.reload(constants).HF_HUB_CACHE)\n"
        "    os.environ.clear(), os.environ.update(before)\n"
    )
    for name in names:
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", code, json.dumps(CACHES)]
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for variables in CACHES:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            found.append(str(hub_cache()))
    assert found == expected
