"""Checkpoint manifests: which files a checkpoint has, their sizes, sha256 and tensor keys.

A directory is a checkpoint only if its manifest exists, and it is intact only if every byte is as the manifest says
(safetensors alone accepts most flipped bits). The manifest carries a digest of itself for the same reason.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import msgspec
from msgspec import Struct

from gpuworkbench.errors import CheckpointError, ForeignCheckpointError
from gpuworkbench.io import REAL_FILES, Files, write_durable
from gpuworkbench.io.reading import open_regular, read_regular_file
from gpuworkbench.runs.paths import CHECKPOINT_NAME, RunPaths

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_FALL_BACK = "an earlier checkpoint is used where there is one"


class ManifestFile(Struct, frozen=True, kw_only=True):
    """One file of a checkpoint. `keys` are the names of its tensors, None for other files."""

    name: str
    num_bytes: int
    sha256: str
    keys: tuple[str, ...] | None = None


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint consists of. `digest` is the sha256 of this object's JSON with an empty digest."""

    version: int
    step: int
    files: tuple[ManifestFile, ...]
    digest: str = ""

    @property
    def num_bytes(self) -> int:
        """Size of all files together, without the manifest."""
        return sum(file.num_bytes for file in self.files)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of all tensors, in file order."""
        return tuple(key for file in self.files for key in file.keys or ())


class CheckpointRef(Struct, frozen=True, order=True):
    """A committed checkpoint: the state after `step` optimizer steps. Its content is not verified yet."""

    step: int
    path: Path


def write_manifest(directory: Path, step: int, files: Files = REAL_FILES) -> Manifest:
    """Describe every file of `directory` in its manifest, the last file to be written, and fsync it.

    The files must be complete and fsynced. Raises OSError (also for what is no regular file), CheckpointError for a
    safetensors file with a malformed header.
    """
    names = sorted(name for name in os.listdir(directory) if name != MANIFEST_NAME)
    try:
        entries = tuple(_describe(directory / name) for name in names)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    manifest = Manifest(version=MANIFEST_VERSION, step=step, files=entries)
    manifest = msgspec.structs.replace(manifest, digest=_digest(manifest))
    write_durable(directory / MANIFEST_NAME, _encode(manifest), files)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint, itself verified; its files are not looked at.

    Raises CheckpointError where it is damaged, ForeignCheckpointError where it is of another version.
    """
    where = f"{directory.name}/{MANIFEST_NAME}"
    try:
        data = read_regular_file(directory / MANIFEST_NAME, MAX_MANIFEST_BYTES)
        manifest = msgspec.json.decode(data, type=Manifest)
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror or error}", _FALL_BACK) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is damaged: {error}", _FALL_BACK) from None
    if manifest.digest != _digest(manifest) or data != _encode(manifest):
        raise CheckpointError(f"{where} is damaged: its digest differs", _FALL_BACK)
    if manifest.version != MANIFEST_VERSION:
        raise ForeignCheckpointError(
            f"{where} has version {manifest.version}, not {MANIFEST_VERSION}", "use the gpuworkbench that wrote it"
        )
    match = CHECKPOINT_NAME.fullmatch(directory.name)
    if match and int(match[1]) != manifest.step:
        raise CheckpointError(f"{where} is of step {manifest.step}: the directory was renamed", _FALL_BACK)
    return manifest


def verify_checkpoint(directory: Path) -> Manifest:
    """Read every file of a checkpoint and compare it with the manifest.

    Returns the manifest; only the files it names may be loaded. Raises CheckpointError naming the file and what
    differs.
    """
    manifest = read_manifest(directory)
    for entry in manifest.files:
        where = f"{directory.name}/{entry.name}"
        if "/" in entry.name or "\0" in entry.name or entry.name in ("", ".", "..", MANIFEST_NAME):
            raise CheckpointError(f"{where} is not a file name of a checkpoint", _FALL_BACK)
        try:
            found = _describe(directory / entry.name)
        except OSError as error:
            raise CheckpointError(f"{where} cannot be read: {error.strerror or error}", _FALL_BACK) from None
        except ValueError as error:
            raise CheckpointError(f"{where} is damaged: {error}", _FALL_BACK) from None
        if difference := _difference(entry, found):
            raise CheckpointError(f"{where} is damaged: {difference}", _FALL_BACK)
    return manifest


def list_checkpoints(paths: RunPaths) -> list[CheckpointRef]:
    """Committed checkpoints, newest first: real directories of the right name that have a manifest."""
    try:
        with os.scandir(paths.checkpoints) as scan:
            entries = [entry for entry in scan if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    found = []
    for entry in entries:
        match = CHECKPOINT_NAME.fullmatch(entry.name)
        if match and os.path.isfile(os.path.join(entry.path, MANIFEST_NAME)):
            found.append(CheckpointRef(int(match[1]), paths.checkpoints / entry.name))
    return sorted(found, reverse=True)


def safetensors_keys(data: bytes, name: str) -> tuple[str, ...]:
    """The tensor names in a safetensors header (`data` begins with it). Raises ValueError.

    Format: 8 bytes little-endian header length, then that many bytes of JSON.
    https://huggingface.co/docs/safetensors#format
    """
    if len(data) < 8:
        raise ValueError(f"{name} is too short for a safetensors file")
    (length,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + length]
    if len(header) != length:
        raise ValueError(f"{name} ends within its safetensors header")
    try:
        decoded = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} has a malformed safetensors header: {error}") from None
    return tuple(sorted(key for key in decoded if key != "__metadata__"))


def _describe(path: Path) -> ManifestFile:
    """Size, digest and tensor keys, in one pass over the file."""
    with os.fdopen(open_regular(path), "rb") as stream:
        keys = safetensors_keys(_read_header(stream.fileno()), path.name) if path.suffix == ".safetensors" else None
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return ManifestFile(name=path.name, num_bytes=stream.tell(), sha256=digest, keys=keys)


def _read_header(fd: int) -> bytes:
    """The length and the header of a safetensors file, without moving the file's position."""
    start = os.pread(fd, 8, 0)
    if len(start) < 8:
        return start
    (length,) = struct.unpack("<Q", start)
    return start + os.pread(fd, min(length, MAX_HEADER_BYTES), 8)


def _difference(entry: ManifestFile, found: ManifestFile) -> str | None:
    if found.num_bytes != entry.num_bytes:
        return f"it has {found.num_bytes} bytes instead of {entry.num_bytes}"
    if found.sha256 != entry.sha256:
        return f"its sha256 is {found.sha256[:12]}… instead of {entry.sha256[:12]}…"
    if found.keys != entry.keys:
        return "its tensor names differ"
    return None


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(_encode(msgspec.structs.replace(manifest, digest=""))).hexdigest()


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
