"""Named sets of token shards: downloaded from a hub on the loopback, found again offline, local folders first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpuworkbench.data import PreparedData, prepare
from gpuworkbench.data.location import NAMED_SOURCES
from gpuworkbench.data.shards.shard_file import UINT16, ShardWriter, map_shard
from gpuworkbench.data.shards.shard_sets import SHARD_SETS, cached_shards
from gpuworkbench.errors import DataError
from tests.fixtures.data_configs import data_config
from tests.fixtures.hub_server import HubServer
from tests.fixtures.shared_data import shared_data
from tests.fixtures.tiny_run import Workspace

pytest.importorskip("huggingface_hub")

REPO_ID = "kjj0/fineweb10B-gpt2"
NAMES = ["fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_train_000003.bin", "fineweb_val_000000.bin"]


def shard(path: Path, seed: int, n_tokens: int = 3000) -> Path:
    tokens = np.random.default_rng(seed).integers(0, 50257, n_tokens)
    with ShardWriter(path, UINT16) as writer:
        writer.append(tokens)
        writer.finish()
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "made"
    folder.mkdir()
    return [shard(folder / name, seed) for seed, name in enumerate(NAMES)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"TIKTOKEN_CACHE_DIR": str(shared_data("tiktoken")), "XDG_DATA_HOME": str(tmp_path / "share")}


@pytest.fixture
def server(
    shards: list[Path], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    files = {path.name: path.read_bytes() for path in shards} | {"README.md": b"# shards"}
    with HubServer({f"datasets/{REPO_ID}": files}) as running:
        for name, value in (environment | running.environment(tmp_path / "hf")).items():
            monkeypatch.setenv(name, value)
        yield running


def prepared(tmp_path: Path, messages: list[str] | None = None, **data: int) -> PreparedData:
    config = data_config("fineweb10B", "gpt2", **data)
    said = messages if messages is not None else []
    return prepare(config, cache_dir=tmp_path / "cache", on_progress=lambda message, _: said.append(message))


def tokens_of(data: PreparedData, split: str) -> list[int]:
    tokens = data.tokens(split)  # type: ignore[arg-type]
    return tokens.slice(0, len(tokens)).tolist()


def test_the_first_shards_are_downloaded_once(
    server: HubServer, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    data = prepared(tmp_path, messages, shards=2)
    assert tokens_of(data, "train") == [token for path in shards[:2] for token in map_shard(path).tolist()]
    assert tokens_of(data, "val") == map_shard(shards[3]).tolist()
    assert any(f"3 files, 20.6 KiB, to download from {REPO_ID}" in message for message in messages)
    n_requests = len(server.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert prepared(tmp_path, shards=2) == data
    assert tokens_of(prepared(tmp_path), "train") == map_shard(shards[0]).tolist()
    assert len(server.requests) == n_requests
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, shards=3)
    assert "HF_HUB_OFFLINE is set; use --set data.shards=2 (cached), or --set data.source=stdlib" in caught.value.line()


def test_more_shards_come_when_they_are_wanted(server: HubServer, tmp_path: Path) -> None:
    """Without a gap: which tokens a run trains on does not depend on what else was downloaded."""
    prepared(tmp_path, shards=2)
    train, _ = cached_shards("fineweb10B")
    train[0].unlink()
    assert cached_shards("fineweb10B")[0] == ()
    assert prepared(tmp_path, shards=3).n_train_tokens == 9000
    assert len(server.gets(NAMES[1])) == 1
    with pytest.raises(DataError, match=r"holds 3 files .*, 4 are wanted"):
        prepared(tmp_path, shards=4)


def test_a_local_folder_wins(server: HubServer, shards: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "fineweb10B"
    folder.mkdir(parents=True)
    for path in shards[1:]:
        path.rename(folder / path.name)
    assert prepared(tmp_path).n_train_tokens == 6000
    assert prepared(tmp_path, shards=1).n_train_tokens == 3000
    with pytest.raises(DataError, match=r"data\.shards = 3, .* holds 2 training shards"):
        prepared(tmp_path, shards=3)
    assert server.requests == []


def test_data_shards_takes_the_first_of_any_folder(
    shards: list[Path], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", environment["TIKTOKEN_CACHE_DIR"])
    config = data_config(shards[0].parent, "gpt2", shards=2)
    assert prepare(config, cache_dir=tmp_path / "c").n_train_tokens == 6000


def test_offline_is_one_line_and_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.environ |= environment | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    workspace.environ.pop("HF_HUB_OFFLINE", None)
    done = workspace.train("nothing", "--set", "data.source=fineweb10B", "--set", "data.tokenizer=gpt2")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{REPO_ID} cannot be downloaded from http://127.0.0.1:9 (ConnectError" in line
    assert line.endswith("use --set data.source=stdlib --set data.tokenizer=bpe-8192")
    assert not workspace.runs.exists() or not list(workspace.runs.iterdir())


def test_every_set_is_a_named_source() -> None:
    assert set(SHARD_SETS) <= set(NAMED_SOURCES)
