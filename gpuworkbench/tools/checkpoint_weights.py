"""The weights of a run's checkpoint, verified and open, while the run may train on and retire that checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.errors import CheckpointError, RunError
from gpuworkbench.io.reading import read_regular_file
from gpuworkbench.io.safetensors_reader import SafetensorsReader
from gpuworkbench.runs.manifest import CheckpointRef, Manifest, ManifestFile, list_checkpoints, read_manifest
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.checkpoint_files import STATE_FILE, StateFile

WEIGHTS_FILE = "model.safetensors"
MAX_STATE_BYTES = 64 * 1024 * 1024
_TRIES = 20  # listings, each made because a checkpoint went away while it was looked at


class CheckpointWeights(NamedTuple):
    """Weights of one step. `progress` holds the counters of the checkpoint; `reader` stays good when it is retired."""

    step: int
    reader: SafetensorsReader
    progress: Mapping[str, Any]


def open_weights(paths: RunPaths, step: int | None, note: Callable[[str], None]) -> CheckpointWeights:
    """The checkpoint of `step`, or the newest intact one; `note` gets a line for each damaged one that is passed over.

    Only the files that are used are verified. Raises RunError where there is none, CheckpointError where none is
    intact.
    """
    for _ in range(_TRIES):
        references = _choices(paths, step)
        try:
            return _first_intact(paths, references, step, note)
        except _GoneError:
            continue
    raise CheckpointError(f"{paths.root.name}: its checkpoints go faster than they can be read", "pause the run first")


class _GoneError(Exception):
    """A checkpoint was retired between listing and opening."""


def _choices(paths: RunPaths, step: int | None) -> list[CheckpointRef]:
    references = list_checkpoints(paths)
    if not references:
        raise RunError(f"{paths.root.name} has no checkpoint yet", "train it further, or `gpuworkbench checkpoint RUN`")
    matching = [reference for reference in references if step in (None, reference.step)]
    if not matching:
        steps = ", ".join(str(reference.step) for reference in references)
        raise RunError(f"{paths.root.name} has no checkpoint of step {step}", f"it has: {steps}")
    return matching


def _first_intact(
    paths: RunPaths, references: list[CheckpointRef], step: int | None, note: Callable[[str], None]
) -> CheckpointWeights:
    for reference in references:
        try:
            return _open(reference)
        except CheckpointError as error:
            if not reference.path.exists():
                raise _GoneError from None
            if step is not None:
                raise
            note(error.line())
    raise CheckpointError(f"{paths.root.name}: no checkpoint is intact", "resume the run from an earlier copy")


def _open(reference: CheckpointRef) -> CheckpointWeights:
    manifest = read_manifest(reference.path)
    progress = _read_progress(reference.path, manifest)
    entry = _entry(reference.path, manifest, WEIGHTS_FILE)
    try:
        reader = SafetensorsReader(reference.path / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise _damaged(reference.path, WEIGHTS_FILE, error) from None
    if reader.num_bytes != entry.num_bytes or reader.sha256() != entry.sha256:
        reader.close()
        raise _damaged(reference.path, WEIGHTS_FILE, ValueError("its sha256 is not that of its manifest"))
    return CheckpointWeights(manifest.step, reader, progress)


def _read_progress(directory: Path, manifest: Manifest) -> Mapping[str, Any]:
    entry = _entry(directory, manifest, STATE_FILE)
    try:
        data = read_regular_file(directory / STATE_FILE, MAX_STATE_BYTES)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ValueError("its sha256 is not that of its manifest")
        parts = msgspec.json.decode(data, type=StateFile).parts
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(directory, STATE_FILE, error) from None
    return parts["progress"].values if "progress" in parts else {}


def _entry(directory: Path, manifest: Manifest, name: str) -> ManifestFile:
    for entry in manifest.files:
        if entry.name == name:
            return entry
    raise CheckpointError(f"{directory.name} has no {name}", "use the gpuworkbench that wrote it")


def _damaged(directory: Path, name: str, error: Exception) -> CheckpointError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return CheckpointError(f"{directory.name}/{name} is damaged: {reason}", "an earlier checkpoint is used, if any")
