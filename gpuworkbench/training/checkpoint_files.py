"""What a checkpoint directory holds, written from a snapshot and read back into the parts of a run.

`<part>.safetensors` for a part with tensors, `state.json` with the plain values of all parts, `manifest.json` last.
Nothing is ever unpickled.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open

from gpuworkbench.errors import CheckpointError, ConfigError, ForeignCheckpointError
from gpuworkbench.io.atomic import write_durable
from gpuworkbench.io.files import Files
from gpuworkbench.io.safetensors_file import TensorRecord, write_safetensors
from gpuworkbench.memory.host_arena import host_like
from gpuworkbench.parts import MayBeMissing, Part, Stateful
from gpuworkbench.runs.manifest import Manifest, write_manifest
from gpuworkbench.training.memory_errors import is_out_of_memory
from gpuworkbench.training.state import STATE_VERSION

STATE_FILE = "state.json"
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


class PartEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part in state.json."""

    version: int
    values: dict[str, Any]


class StateFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of state.json."""

    version: int
    step: int
    parts: dict[str, PartEntry]


@dataclass(frozen=True)
class Snapshot:
    """A run's state at one step: nothing that is changed before it is written."""

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: StateFile
    finite: Mapping[str, frozenset[str]]
    best_step: int | None


class HostBuffers:
    """Host memory for snapshots, allocated at the first and reused by every later one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}

    def copy(self, part: str, name: str, source: torch.Tensor) -> torch.Tensor:
        """Copy `source` into its buffer; on CUDA asynchronously, so `synchronize` before the bytes are read."""
        buffer = self._buffers.get((part, name))
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            buffer = host_like(source)
            self._buffers[part, name] = buffer
        return buffer.copy_(source, non_blocking=source.is_cuda)


def take_snapshot(
    parts: Mapping[str, Stateful], step: int, best_step: int | None, buffers: HostBuffers | None
) -> Snapshot:
    """Copy the state of all parts to the host. Raises RuntimeError or MemoryError where there is no room for it.

    Without `buffers` nothing is copied: the snapshot holds only as long as nothing writes to the state.
    """
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    entries: dict[str, PartEntry] = {}
    finite: dict[str, frozenset[str]] = {}
    for part_name, stateful in parts.items():
        part = stateful.state()
        if part.tensors:
            tensors[part_name] = {
                name: tensor.detach()
                if buffers is None or (part.is_lasting and not tensor.is_cuda)
                else buffers.copy(part_name, name, tensor)
                for name, tensor in part.tensors.items()
            }
        entries[part_name] = PartEntry(version=stateful.version, values=copy.deepcopy(part.values))
        finite[part_name] = part.finite
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return Snapshot(step, tensors, StateFile(version=STATE_VERSION, step=step, parts=entries), finite, best_step)


def refuse_nonfinite(snapshot: Snapshot) -> None:
    """CheckpointError when a weight is NaN or infinite: such a state must not take the place of a finite one."""
    for part_name, names in snapshot.finite.items():
        for name in sorted(names):
            tensor = snapshot.tensors[part_name][name]
            if not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
                raise CheckpointError(f"{part_name} tensor {name} holds NaN or Inf")


def write_checkpoint_files(directory: Path, snapshot: Snapshot, files: Files) -> int:
    """Fill a new `directory`, every file fsynced, the manifest last; returns the bytes. Raises OSError."""
    files.mkdir(directory)
    for part_name, tensors in snapshot.tensors.items():
        records = [_record(name, tensors[name]) for name in sorted(tensors)]
        write_safetensors(directory / f"{part_name}.safetensors", records, files)
    data = msgspec.json.format(msgspec.json.encode(snapshot.state), indent=2) + b"\n"
    write_durable(directory / STATE_FILE, data, files)
    return write_manifest(directory, snapshot.step, files).num_bytes


def load_checkpoint_files(directory: Path, manifest: Manifest, parts: Mapping[str, Stateful]) -> None:
    """Put a verified checkpoint into the parts, each in place.

    Raises ForeignCheckpointError where the content does not belong to this run or program, and what says that memory
    is full; then the parts must not be used.
    """
    state = _read_state(directory, manifest)
    stored = {entry.name for entry in manifest.files}
    for part_name, stateful in parts.items():
        entry = state.parts.get(part_name)
        if entry is None and isinstance(stateful, MayBeMissing):
            stateful.reset()
            continue
        if entry is None:
            raise _foreign(directory, f"it holds no {part_name!r} state")
        if entry.version != stateful.version:
            raise _foreign(directory, f"its {part_name!r} state has version {entry.version}, not {stateful.version}")
        try:
            part = Part(values=dict(entry.values))
            if f"{part_name}.safetensors" in stored:
                part.tensors = LazyTensors(directory / f"{part_name}.safetensors")
            stateful.load(part)
        except (CheckpointError, ConfigError) as error:
            raise _foreign(directory, error.message) from None
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise  # the checkpoint is right, there is no room for it now
            reason = " ".join(str(error).split())[:200]
            raise _foreign(directory, f"its {part_name!r} state does not fit: {reason}") from None


def _read_state(directory: Path, manifest: Manifest) -> StateFile:
    if STATE_FILE not in {entry.name for entry in manifest.files}:
        raise _foreign(directory, f"it has no {STATE_FILE}")
    try:
        state = msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=StateFile)
    except (OSError, ValueError, RecursionError) as error:
        raise _foreign(directory, f"{STATE_FILE}: {error}") from None
    if state.version != STATE_VERSION:
        raise _foreign(directory, f"its state has version {state.version}, not {STATE_VERSION}")
    if state.step != manifest.step:
        raise _foreign(directory, f"{STATE_FILE} is of step {state.step}")
    return state


def _foreign(directory: Path, what: str) -> ForeignCheckpointError:
    return ForeignCheckpointError(
        f"checkpoint {directory.name} is intact but cannot be used here: {what}",
        "use the gpuworkbench and the configuration that wrote it",
    )


class LazyTensors(dict[str, torch.Tensor]):
    """The tensors of a safetensors file, read one at a time, so that loading needs no second copy of the state."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = safe_open(str(path), framework="pt")
        for name in self._file.keys():  # noqa: SIM118 - not a dict
            super().__setitem__(name, torch.empty(0))

    def __getitem__(self, name: str) -> torch.Tensor:
        super().__getitem__(name)  # a KeyError names what is missing
        return self._file.get_tensor(name)

    def items(self) -> Any:
        """(name, tensor) pairs, each tensor read when reached."""
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        """Tensors, each read when reached."""
        return (self[name] for name in self)


def load_model_tensors(directory: Path) -> LazyTensors:
    """The weights of a verified checkpoint directory, for sampling and export. Raises CheckpointError."""
    try:
        return LazyTensors(directory / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory.name}/model.safetensors: {error}") from None


def _record(name: str, tensor: torch.Tensor) -> TensorRecord:
    flat = tensor.to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return TensorRecord(name, _DTYPES[tensor.dtype], tuple(tensor.shape), memoryview(flat.numpy().data))
