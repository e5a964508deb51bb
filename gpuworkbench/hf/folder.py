"""A model folder that somebody points `train.init_from` at: its config.json, its weight files, what is in them.

Everything that can be told from headers is checked here, before a run exists. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpuworkbench import registry
from gpuworkbench.errors import ConfigError
from gpuworkbench.hf.layout import Layout, PublishedSize, TensorRule
from gpuworkbench.io.reading import open_regular, read_regular_file
from gpuworkbench.io.safetensors_reader import SafetensorsReader, StoredTensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_INDEX_BYTES = 64 * 1024 * 1024
DTYPES = ("F32", "F16", "BF16")  # what weights may be stored in
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")


class Description(NamedTuple):
    """What config.json says."""

    folder: Path
    layout: Layout
    sizes: tuple[PublishedSize, ...]


class Placed(NamedTuple):
    """A stored tensor and where it goes; `rule` is None for a buffer that is not needed."""

    tensor: StoredTensor
    rule: TensorRule | None


def describe(folder: Path) -> Description:
    """Read config.json. Raises ConfigError for what is missing, malformed or of another kind of model."""
    where = f"train.init_from = {str(folder)!r}"
    if not folder.is_dir():
        raise ConfigError(f"{where}: {_why_no_folder(folder)}", "name a folder with config.json and model.safetensors")
    published = _json_object(folder / CONFIG_FILE, MAX_CONFIG_BYTES, _hint_without_config(folder))
    layouts = {layout.model_type: layout for layout in map(_layout_of, registry.MODELS) if layout}
    model_type = published.get("model_type")
    layout = layouts.get(model_type) if isinstance(model_type, str) else None
    if layout is None:
        raise ConfigError(
            f"{folder / CONFIG_FILE}: model_type = {model_type!r} is not supported", f"choices: {', '.join(layouts)}"
        )
    try:
        return Description(folder, layout, tuple(layout.sizes(published)))
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG_FILE}: {error}", "start from another model") from None


def layout_of(family: str) -> Layout:
    """The published form of a model family. Raises ConfigError where it has none."""
    layout = _layout_of(family)
    if layout is None:
        raise ConfigError(f"model.family = {family!r} has no published form", "gpt2 has one")
    return layout


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those its index names. Raises ConfigError."""
    if os.path.lexists(folder / WEIGHTS_FILE):
        return [folder / WEIGHTS_FILE]
    if not os.path.lexists(folder / INDEX_FILE):
        raise _no_weights(folder)
    index = _json_object(folder / INDEX_FILE, MAX_INDEX_BYTES, "copy the folder again")
    weight_map = index.get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names:
        raise ConfigError(f"{folder / INDEX_FILE} names no files", "copy the folder again")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or os.path.basename(name) != name:
            raise ConfigError(f"{folder / INDEX_FILE} names {name!r}, not a .safetensors file beside it", "mend it")
    return [folder / name for name in sorted(set(names))]


class Weights:
    """The open weight files of a folder, checked against a model: a context manager.

    `placed` holds each file's tensors in the order of their bytes.
    """

    def __init__(self, folder: Path, layout: Layout, model_config: Any) -> None:
        """Raises ConfigError naming the first tensor that is missing, surplus or of another shape or type."""
        self.folder = folder
        rules = layout.tensors(model_config)
        with ExitStack() as stack:
            self.files = [stack.enter_context(_open(path)) for path in weight_files(folder)]
            self.placed = _place(self.files, layout, {rule.published: rule for rule in rules})
            found = {place.rule.published for places in self.placed for place in places if place.rule}
            missing = [rule.published for rule in rules if not rule.is_copy and rule.published not in found]
            if missing:
                raise ConfigError(
                    f"{folder}: tensor {missing[0]!r} is missing{_and_more(missing)}",
                    f"is {CONFIG_FILE} the one that belongs to these weights?",
                )
            self._stack = stack.pop_all()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def n_tensors(self) -> int:
        """Tensors that go into the model."""
        return sum(place.rule is not None and not place.rule.is_copy for places in self.placed for place in places)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """In what they are stored."""
        return tuple(sorted({place.tensor.dtype for places in self.placed for place in places if place.rule}))


def identity(names_and_digests: Mapping[str, str]) -> str:
    """The sha256 that a run stores: a single file's own, else that of the lines `sha256sum` prints for several."""
    if len(names_and_digests) == 1:
        return next(iter(names_and_digests.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(names_and_digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def identity_of(paths: list[Path], on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """`identity` of files as they are now; `on_bytes` is told how much was read. Raises ConfigError."""
    digests = {}
    for path in paths:
        digest = hashlib.sha256()
        try:
            with os.fdopen(open_regular(path, follow_symlinks=True), "rb") as stream:
                while chunk := stream.read(1 << 24):
                    digest.update(chunk)
                    on_bytes(len(chunk))
        except OSError as error:
            raise unreadable(path, error) from None
        digests[path.name] = digest.hexdigest()
    return identity(digests)


def unreadable(path: Path, error: Exception) -> ConfigError:
    """The one-line form of what went wrong with a file of the folder."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ConfigError(f"{path}: {reason}", "check train.init_from, or copy the folder again")


def _place(
    files: list[SafetensorsReader], layout: Layout, rules: Mapping[str, TensorRule]
) -> tuple[tuple[Placed, ...], ...]:
    seen: dict[str, Path] = {}
    placed = []
    for file in files:
        places = []
        for tensor in file.tensors:
            name = tensor.name.removeprefix(layout.prefix)
            if name in seen:
                where = file.path.name if seen[name] == file.path else f"{seen[name].name} and {file.path.name}"
                raise ConfigError(f"{where}: tensor {name!r} is there twice", "copy the folder again")
            seen[name] = file.path
            rule = rules.get(name)
            if rule is None and not layout.is_ignored(name):
                raise ConfigError(
                    f"{file.path}: tensor {tensor.name!r} does not belong to a {layout.model_type} of this size",
                    f"is {CONFIG_FILE} the one that belongs to these weights?",
                )
            if rule is not None:
                _check(file.path, tensor, rule)
            places.append(Placed(tensor, rule))
        placed.append(tuple(places))
    return tuple(placed)


def _check(path: Path, tensor: StoredTensor, rule: TensorRule) -> None:
    if tensor.shape != rule.shape:
        raise ConfigError(
            f"{path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, {CONFIG_FILE} makes it {list(rule.shape)}",
            f"is {CONFIG_FILE} the one that belongs to these weights?",
        )
    if tensor.dtype not in DTYPES:
        raise ConfigError(
            f"{path}: tensor {tensor.name!r} is {tensor.dtype}", f"save the weights as one of {', '.join(DTYPES)}"
        )


def _open(path: Path) -> SafetensorsReader:
    try:
        return SafetensorsReader(path, follow_symlinks=True)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _json_object(path: Path, max_bytes: int, hint: str) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(read_regular_file(path, max_bytes, follow_symlinks=True))
    except OSError as error:
        reason = "is not there" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
        raise ConfigError(f"{path} {reason}", hint) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}", "copy the folder again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object", "copy the folder again")
    return content


def _layout_of(family: str) -> Layout | None:
    target = registry.MODELS[family].layout
    return None if target is None else registry.load(target)


def _why_no_folder(path: Path) -> str:
    if path.suffix == ".safetensors" and path.is_file():
        return "is a file; name the folder that it lies in"
    return "is not a folder" if os.path.lexists(path) else "is not there"


def _hint_without_config(folder: Path) -> str:
    if (folder / "run.toml").exists():
        return f"it is a run: gpuworkbench export {folder.name} --to DIR writes what can be started from"
    return "name a folder with config.json and model.safetensors"


def _no_weights(folder: Path) -> ConfigError:
    try:
        pickles = sorted(name for name in os.listdir(folder) if name.endswith(_PICKLES))
    except OSError as error:
        return unreadable(folder, error)
    if pickles:
        return ConfigError(
            f"{folder}: {pickles[0]} is a pickle, which can run code when it is opened",
            "convert it to safetensors (transformers: model.save_pretrained), or take a copy with model.safetensors",
        )
    return ConfigError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}", "name a folder that does")


def _and_more(names: list[str]) -> str:
    return f" ({len(names)} such)" if len(names) > 1 else ""
