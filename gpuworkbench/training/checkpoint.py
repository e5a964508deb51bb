"""Checkpoints: snapshot to host memory, written by a thread, committed atomically, verified at load.

Order of a commit, each step needed for "an acknowledged checkpoint survives a power cut": write the files into a
temporary directory, fsync each, write the manifest with their sha256, fsync the directory, rename it to its final
name, fsync the parent, then emit `checkpoint_saved`. Only that event acknowledges.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import safe_open

from gpuworkbench.errors import CheckpointError
from gpuworkbench.events.schema import CheckpointSaved
from gpuworkbench.events.schema import Warning as WarningEvent
from gpuworkbench.events.writer import EventWriter
from gpuworkbench.io.atomic import commit_directory, discard_directory, temporary_path, write_durable
from gpuworkbench.io.files import REAL_FILES, Files, remove_tree
from gpuworkbench.io.safetensors_file import TensorRecord, write_safetensors
from gpuworkbench.runs.manifest import Manifest, list_checkpoints, verify_checkpoint, write_manifest
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.training.state import STATE_VERSION, Part, Stateful

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """A run's state at one step, in host memory: nothing the next step changes."""

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    values: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, int]
    best_step: int | None


class Restored(NamedTuple):
    """What a restore found: the step (None: no checkpoint yet) and a line for each damaged checkpoint passed over."""

    step: int | None
    damaged: tuple[str, ...]


class HostBuffers:
    """Host memory for snapshots, allocated at the first and reused by every later one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def copy(self, part: str, name: str, source: torch.Tensor) -> torch.Tensor:
        """Copy `source` into its buffer; on CUDA asynchronously, so `synchronize` before the bytes are read."""
        buffer = self._buffers.get((part, name))
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            buffer = torch.empty(source.shape, dtype=source.dtype, device="cpu")
            self._buffers[part, name] = buffer
        return buffer.copy_(source, non_blocking=source.is_cuda)


class Checkpointer:
    """Saves and restores the parts of one run. One save is in flight at a time."""

    def __init__(
        self,
        paths: RunPaths,
        parts: Mapping[str, Stateful],
        events: EventWriter,
        *,
        keep_last: int,
        keep_best: bool,
        files: Files = REAL_FILES,
    ) -> None:
        self.paths = paths
        self.parts = parts
        self.events = events
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.files = files
        self._buffers = HostBuffers()
        self._thread: threading.Thread | None = None
        self._in_flight_step: int | None = None
        self.last_saved_step: int | None = None
        self.failure: BaseException | None = None

    def save(self, step: int, *, best_step: int | None, wait: bool = False) -> None:
        """Snapshot now, write behind training. A failed write is a warning event, never an exception.

        Blocks while an earlier save is still being written. With `wait` (a run's end) it returns when the state is
        durable, or has failed to be a second time.
        """
        if step not in (self.last_saved_step, self._in_flight_step):
            self._start(step, best_step)
        if wait:
            self.wait()
            if self.last_saved_step != step:
                self._start(step, best_step)
                self.wait()

    def _start(self, step: int, best_step: int | None) -> None:
        started = time.monotonic()
        self.wait()
        snapshot = self._snapshot(step, best_step)
        stall_s = time.monotonic() - started
        self._in_flight_step = step
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, stall_s), name="checkpoint-writer", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._in_flight_step = None

    def restore(self) -> Restored:
        """Load the newest intact checkpoint into the parts.

        A damaged one is put aside and the one before it is tried; what was wrong is in the result. Raises
        CheckpointError when checkpoints exist and none is intact.
        """
        damaged: list[str] = []
        for reference in list_checkpoints(self.paths):
            try:
                manifest = verify_checkpoint(reference.path)
                self._load(reference.path, manifest)
            except CheckpointError as error:
                damaged.append(error.line())
                self._put_aside(reference.path)
                continue
            self.last_saved_step = reference.step
            return Restored(reference.step, tuple(damaged))
        if damaged:
            raise CheckpointError(f"no intact checkpoint is left: {damaged[0]}", "start the run anew")
        return Restored(None, ())

    def _snapshot(self, step: int, best_step: int | None) -> Snapshot:
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        values: dict[str, dict[str, Any]] = {}
        for part_name, stateful in self.parts.items():
            part = stateful.state()
            if part.tensors:
                tensors[part_name] = {
                    name: self._buffers.copy(part_name, name, tensor) for name, tensor in part.tensors.items()
                }
            values[part_name] = dict(part.values)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        versions = {name: stateful.version for name, stateful in self.parts.items()}
        return Snapshot(step, tensors, values, versions, best_step)

    def _write(self, snapshot: Snapshot, stall_s: float) -> None:
        started = time.monotonic()
        final = self.paths.checkpoint(snapshot.step)
        temporary = temporary_path(final)
        try:
            if temporary.exists():
                remove_tree(self.files, temporary)
            num_bytes = self._write_directory(temporary, snapshot)
            commit_directory(temporary, final, self.files)
        except (OSError, CheckpointError) as error:
            self.failure = error
            discard_directory(temporary)
            since = "the start" if self.last_saved_step is None else f"step {self.last_saved_step}"
            self.events.emit(
                WarningEvent,
                step=snapshot.step,
                code="checkpoint_failed",
                message=f"checkpoint at step {snapshot.step} could not be written ({error}); unsaved since {since}",
                hint="free disk space or check the disk; training goes on and the next checkpoint is tried",
            )
            return
        self.failure = None
        self.last_saved_step = snapshot.step
        self.events.emit(
            CheckpointSaved,
            step=snapshot.step,
            path=str(final.relative_to(self.paths.root)),
            num_bytes=num_bytes,
            duration_s=time.monotonic() - started,
            stall_s=stall_s,
        )
        self.events.sync()
        self._prune(snapshot.best_step)

    def _write_directory(self, directory: Path, snapshot: Snapshot) -> int:
        self.files.mkdir(directory)
        for part_name, tensors in snapshot.tensors.items():
            records = [_record(name, tensors[name]) for name in sorted(tensors)]
            write_safetensors(directory / f"{part_name}.safetensors", records, self.files)
        state = {
            "version": STATE_VERSION,
            "step": snapshot.step,
            "parts": {
                name: {"version": snapshot.versions[name], "values": values} for name, values in snapshot.values.items()
            },
        }
        data = msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"
        write_durable(directory / STATE_FILE, data, self.files)
        return write_manifest(directory, snapshot.step, self.files).num_bytes

    def _load(self, directory: Path, manifest: Manifest) -> None:
        try:
            state = msgspec.json.decode((directory / STATE_FILE).read_bytes())
            saved_parts = state["parts"]
            version = state["version"]
        except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{directory / STATE_FILE}: {error}") from None
        if version != STATE_VERSION:
            raise CheckpointError(f"{directory}: state version {version}, this program reads {STATE_VERSION}")
        stored = {entry.name for entry in manifest.files}
        for part_name, stateful in self.parts.items():
            if part_name not in saved_parts:
                raise CheckpointError(f"{directory}: holds no part {part_name!r}")
            if saved_parts[part_name]["version"] != stateful.version:
                raise CheckpointError(f"{directory}: part {part_name!r} is of another version")
            part = Part(values=saved_parts[part_name]["values"])
            if f"{part_name}.safetensors" in stored:
                part.tensors = LazyTensors(directory / f"{part_name}.safetensors")
            stateful.load(part)

    def _put_aside(self, directory: Path) -> None:
        """Hide a damaged checkpoint from every later listing; it is removed after the next good one."""
        try:
            self.files.rename(directory, directory.with_name(f".damaged-{time.time_ns()}-{directory.name}"))
        except OSError:
            return

    def _prune(self, best_step: int | None) -> None:
        """Remove what retention does not keep. Called only after a newer checkpoint is acknowledged."""
        references = list_checkpoints(self.paths)
        kept = {reference.step for reference in references[: self.keep_last]}
        if self.keep_best and best_step is not None:
            kept.add(best_step)
        doomed = [reference.path for reference in references if reference.step not in kept]
        doomed += [path for path in self.paths.checkpoints.glob(".damaged-*") if path.is_dir()]
        doomed += [path for path in self.paths.checkpoints.glob(".tmp-*") if path.is_dir()]
        for path in doomed:
            discard_directory(path, self.files)


class LazyTensors(dict[str, torch.Tensor]):
    """The tensors of a safetensors file, read one at a time, so that loading needs no second copy of the state."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = safe_open(str(path), framework="pt")
        for name in self._file.keys():  # noqa: SIM118 - not a dict
            super().__setitem__(name, torch.empty(0))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)

    def items(self) -> Any:
        """(name, tensor) pairs, each tensor read when reached."""
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        """Tensors, each read when reached."""
        return (self[name] for name in self)


def _record(name: str, tensor: torch.Tensor) -> TensorRecord:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return TensorRecord(name, _DTYPES[tensor.dtype], tuple(tensor.shape), memoryview(flat.numpy().data))


def load_model_tensors(directory: Path) -> LazyTensors:
    """The weights of a verified checkpoint directory, for sampling and export."""
    return LazyTensors(directory / "model.safetensors")
