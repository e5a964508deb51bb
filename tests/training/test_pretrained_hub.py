"""`train.init_from = "hf:OWNER/NAME"` against a hub on the loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuworkbench.errors import ConfigError, DataError, WorkbenchError
from gpuworkbench.hf.folder import weight_files
from gpuworkbench.launch.create import LaunchRequest, check
from tests.fixtures.hf_folders import gpt2, resolved, save_gpt2
from tests.fixtures.hub_server import COMMIT, Faults, HubServer

pytest.importorskip("huggingface_hub")
NAME = "owner/tiny"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One model in a single file."""
    folder = save_gpt2(tmp_path_factory.mktemp("published") / "tiny")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def use(monkeypatch: pytest.MonkeyPatch, hub: HubServer, home: Path, **more: str) -> None:
    for name, value in {**hub.environment(home), **more}.items():
        monkeypatch.setenv(name, value)


def test_a_model_is_downloaded_once_and_then_used_offline(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer({NAME: files}) as hub:
        use(monkeypatch, hub, tmp_path / "home")
        config = resolved(tmp_path, f"hf:{NAME}")
        assert config.model.n_layer == 2
        folder = Path(config.train.init_from)
        assert folder.is_absolute()
        assert folder.name == COMMIT
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        n_downloads = len(hub.gets("model.safetensors"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nothing listens there any more
    assert resolved(tmp_path, f"hf:{NAME}") == config
    assert n_downloads >= 1


def test_shards_are_downloaded_by_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = save_gpt2(tmp_path / "sharded", gpt2(), max_shard_size="60KB")
    files = {path.name: path.read_bytes() for path in sharded.iterdir()}
    with HubServer({NAME: {**files, "pytorch_model.bin": b"never asked for"}}) as hub:
        use(monkeypatch, hub, tmp_path / "home")
        config = resolved(tmp_path, f"hf:{NAME}@main")
        assert hub.gets(".bin") == []
    assert len(weight_files(Path(config.train.init_from))) == len(weight_files(sharded)) > 1


def refusal(tmp_path: Path, name: str) -> WorkbenchError:
    with pytest.raises((ConfigError, DataError)) as caught:
        resolved(tmp_path, name)
    assert caught.value.line().isprintable()
    return caught.value


def test_a_model_of_another_kind_is_refused_before_its_weights_come(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {**json.loads(files["config.json"]), "model_type": "llama"}
    with HubServer({NAME: {**files, "config.json": json.dumps(config).encode()}}) as hub:
        use(monkeypatch, hub, tmp_path / "home")
        assert "model_type = 'llama' is not supported" in refusal(tmp_path, f"hf:{NAME}").line()
        assert hub.gets("model.safetensors") == []


def test_pickles_are_refused_and_not_downloaded(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer({NAME: {"config.json": files["config.json"], "pytorch_model.bin": b"\x80"}}) as hub:
        use(monkeypatch, hub, tmp_path / "home")
        assert f"hf:{NAME} has no model.safetensors; pickled" in refusal(tmp_path, f"hf:{NAME}").line()
        assert hub.gets(".bin") == []


def test_what_cannot_be_had_names_the_alternatives(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer({NAME: files}, Faults(status={"model.safetensors": 403})) as hub:
        use(monkeypatch, hub, tmp_path / "home")
        assert "--set train.init_from=DIR" in refusal(tmp_path, "hf:owner/nothing").line()
        assert "--set train.init_from=DIR" in refusal(tmp_path, f"hf:{NAME}").line()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "--set train.init_from=DIR" in refusal(tmp_path, "hf:owner/other").line()


@pytest.mark.parametrize("name", ["hf:", "hf:gpt2", "hf:a/b/c", "hf:../..//x", "hf:a/b@", "hf:a/b c", "hf:ä/b"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    assert "names no repository" in refusal(tmp_path, name).line()


def test_without_a_card_nothing_is_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with HubServer({NAME: files}) as hub:
        use(monkeypatch, hub, tmp_path / "home")
        with pytest.raises(WorkbenchError, match="preset gpt2_finetune needs a CUDA card"):
            check(LaunchRequest(preset="gpt2_finetune", runs_dir=tmp_path / "runs", environ={}))
        assert hub.requests == []
