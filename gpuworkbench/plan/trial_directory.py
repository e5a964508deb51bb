"""What a directory of trials is, whatever they are for: a configuration, one file a finished trial, a lock.

A file appears whole or not at all, so a measurement that is killed loses the trial it was at and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from gpuworkbench.config.diff import differences
from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml, read_config_file
from gpuworkbench.errors import RunError, UsageError
from gpuworkbench.io import atomic_write_bytes, atomic_write_json, make_directories, read_regular_file

MAX_FILE_BYTES = 64 * 1024 * 1024


class TrialDirectory:
    """The names within such a directory, and how to read and write what they hold."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def config(self) -> Path:
        """The resolved configuration that every trial begins from."""
        return self.root / "config.toml"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.root / "lock"

    def read_config(self) -> RunConfig:
        """Raises ConfigError."""
        return build(parse_toml(read_config_file(self.config), str(self.config)), str(self.config))

    def read(self, path: Path, kind: Any) -> Any:
        """What a file holds; None where it is missing or damaged."""
        try:
            return msgspec.json.decode(read_regular_file(path, MAX_FILE_BYTES), type=kind)
        except (OSError, ValueError, RecursionError):
            return None

    def read_named(self, kind: Any, path_of: Callable[[Any], Path]) -> list[Any]:
        """Every finished trial; a damaged file, or one under another's name, is a trial that is still to do."""
        found = [(path, self.read(path, kind)) for path in sorted(self.root.glob("trial-*.json"))]
        return [trial for path, trial in found if trial is not None and path == path_of(trial)]

    def write(self, path: Path, value: Any) -> None:
        """Store a result, durably. Raises RunError."""
        try:
            atomic_write_json(path, value)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}", "check the disk") from None


def place_of(kind: str, preset: str, plan: msgspec.Struct, config: RunConfig) -> Path:
    """Where trials are kept unless a person says so: the same request finds the same place, and goes on there."""
    digest = hashlib.sha256(msgspec.json.encode(plan) + dump_toml(config)).hexdigest()[:8]
    return platformdirs.user_data_path("gpuworkbench", appauthor=False) / "bench" / f"{kind}-{preset}-{digest}"


def open_directory(
    files: TrialDirectory,
    config: RunConfig,
    *,
    what: str,
    flag: str,
    first: tuple[Path, Callable[[], msgspec.Struct]],
    check: Callable[[], None],
) -> None:
    """Make the directory of `what` (a search, a comparison), or find it as it was left.

    `first`: the file that makes it one, written last, and what is in it. `check` raises UsageError where the one that
    is there is another. Raises UsageError where there is something else, RunError where it cannot be written; `flag`
    chooses another place.
    """
    root, (path, content) = files.root, first
    try:
        make_directories(root)
        if path.exists():
            check()
            return
        if any(root.iterdir()):
            raise UsageError(f"{root} holds files, and no {what}", f"give an empty or a new {flag}")
        atomic_write_bytes(files.config, dump_toml(config))
        atomic_write_json(path, content())
    except OSError as error:
        raise RunError(
            f"{root} cannot be written: {error.strerror or error}", f"choose another place with {flag}"
        ) from None


def require_same(
    files: TrialDirectory,
    plan: msgspec.Struct,
    config: RunConfig,
    stored: msgspec.Struct,
    *,
    what: str,
    flag: str,
) -> None:
    """UsageError where the directory holds another configuration or plan than what is asked for now."""
    hint = f"give another {flag}, or none"
    changed = [str(difference) for difference in differences(files.read_config(), config)]
    if changed:
        raise UsageError(f"{files.root} holds a {what} of another configuration: {'; '.join(changed[:3])}", hint)
    before, after = msgspec.to_builtins(stored), msgspec.to_builtins(plan)
    odd = [_difference(key, before.get(key), after[key]) for key in after if before.get(key) != after[key]]
    if odd:
        raise UsageError(f"{files.root} holds another {what}: {'; '.join(odd[:3])}", hint)


def _difference(key: str, before: Any, after: Any) -> str:
    values = f"{before!r} -> {after!r}"
    return f"{key}: {values}" if len(values) <= 80 else f"{key} differ"
