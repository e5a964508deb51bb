"""Manifests: every truncation and every flipped bit of a small checkpoint is found."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from gpuworkbench.errors import CheckpointError
from gpuworkbench.runs.manifest import (
    MANIFEST_NAME,
    list_checkpoints,
    read_manifest,
    safetensors_keys,
    verify_checkpoint,
    write_manifest,
)
from gpuworkbench.runs.paths import RunPaths


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoints" / "step-00000005"
    directory.mkdir(parents=True)
    tensors = {"b.weight": np.arange(4, dtype=np.float32), "a": np.zeros((2, 2), dtype=np.float16)}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"step": "5"})
    (directory / "state.json").write_bytes(b'{"step": 5}')
    write_manifest(directory, 5)
    return directory


def test_what_a_manifest_says(checkpoint: Path) -> None:
    manifest = verify_checkpoint(checkpoint)
    assert manifest == read_manifest(checkpoint)
    assert manifest.step == 5
    assert [file.name for file in manifest.files] == ["model.safetensors", "state.json"]
    for file in manifest.files:
        content = (checkpoint / file.name).read_bytes()
        assert (file.num_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with safetensors.safe_open(checkpoint / "model.safetensors", "np") as reference:
        assert sorted(reference.keys()) == list(manifest.keys)
    assert manifest.files[1].keys is None
    assert manifest.num_bytes == sum(file.num_bytes for file in manifest.files)


def test_every_flipped_bit_is_found(checkpoint: Path) -> None:
    for name in ("model.safetensors", "state.json", MANIFEST_NAME):
        path = checkpoint / name
        intact = path.read_bytes()
        for position in range(len(intact)):
            # every bit of the small files, one bit a byte (a different one each) of the longer manifest
            bits = range(8) if name != MANIFEST_NAME else (position % 8,)
            for bit in bits:
                damaged = bytearray(intact)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                with pytest.raises(CheckpointError, match=name):
                    verify_checkpoint(checkpoint)
        path.write_bytes(intact)
    verify_checkpoint(checkpoint)


def test_every_truncation_is_found(checkpoint: Path) -> None:
    for name in ("model.safetensors", "state.json", MANIFEST_NAME):
        path = checkpoint / name
        intact = path.read_bytes()
        for size in range(len(intact)):
            path.write_bytes(intact[:size])
            with pytest.raises(CheckpointError, match=name):
                verify_checkpoint(checkpoint)
        path.write_bytes(intact + b"\0")
        with pytest.raises(CheckpointError, match=name):
            verify_checkpoint(checkpoint)
        path.unlink()
        with pytest.raises(CheckpointError, match=name):
            verify_checkpoint(checkpoint)
        path.write_bytes(intact)
    verify_checkpoint(checkpoint)


def test_messages_name_the_difference(checkpoint: Path) -> None:
    state = checkpoint / "state.json"
    state.write_bytes(b'{"step": 6}')
    with pytest.raises(CheckpointError, match=r"step-00000005/state\.json is damaged: its sha256 is"):
        verify_checkpoint(checkpoint)
    state.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="it has 2 bytes instead of 11"):
        verify_checkpoint(checkpoint)
    state.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        verify_checkpoint(checkpoint)
    os.mkfifo(state)
    with pytest.raises(CheckpointError, match="not a regular file"):
        verify_checkpoint(checkpoint)


def test_a_manifest_cannot_name_files_elsewhere(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuworkbench.runs import manifest as module

    for name in ("../secret", "/etc/passwd", "..", "", MANIFEST_NAME, "a\0b"):
        entry = module.ManifestFile(name=name, num_bytes=0, sha256="")
        forged = module.Manifest(version=1, step=5, files=(entry,))
        forged = module.Manifest(version=1, step=5, files=(entry,), digest=module._digest(forged))
        (checkpoint / MANIFEST_NAME).write_bytes(module._encode(forged))
        with pytest.raises(CheckpointError, match="is not a file name of a checkpoint"):
            verify_checkpoint(checkpoint)


def test_a_renamed_checkpoint_is_refused(checkpoint: Path) -> None:
    renamed = checkpoint.with_name("step-00000009")
    checkpoint.rename(renamed)
    with pytest.raises(CheckpointError, match="is of step 5"):
        verify_checkpoint(renamed)


def test_listing_takes_committed_directories_only(checkpoint: Path, tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    for name in ("step-00000010", "step-00000007", "step-7", "step-00000008.bak", ".tmp-1-step-00000011"):
        (run.checkpoints / name).mkdir()
    for name in ("step-00000010", "step-7", ".tmp-1-step-00000011"):
        (run.checkpoints / name / MANIFEST_NAME).touch()
    (run.checkpoints / "step-00000012").symlink_to(checkpoint)
    (run.checkpoints / "step-00000013").touch()
    assert [(ref.step, ref.path.name) for ref in list_checkpoints(run)] == [(10, "step-00000010"), (5, "step-00000005")]
    assert run.checkpoint(5) == checkpoint
    assert list_checkpoints(RunPaths(tmp_path / "missing")) == []


@pytest.mark.parametrize(
    "data", [b"", b"1234567", b"\xff" * 8, b"\x05" + b"\0" * 7 + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_malformed_safetensors_headers(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        safetensors_keys(data, "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="safetensors"):
        write_manifest(tmp_path, 1)
