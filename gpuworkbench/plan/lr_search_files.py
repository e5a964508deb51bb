"""A learning-rate search on disk: its plan, the configuration of its trials, and one file for each finished trial.

    plan.json  config.toml  range.json  trial-<lr>-<seed>.json  lock

A file appears whole or not at all, so a search that is killed loses the trial it was at and nothing else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import platformdirs

from gpuworkbench.config.diff import differences
from gpuworkbench.config.loader import build
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml, read_config_file
from gpuworkbench.errors import RunError, UsageError
from gpuworkbench.io import atomic_write_bytes, atomic_write_json, make_directories, read_regular_file
from gpuworkbench.plan.lr_search import RangeTest, SearchPlan, Trial

MAX_FILE_BYTES = 64 * 1024 * 1024


class SearchFiles(NamedTuple):
    """The names within a search's directory, and how to read and write what they hold."""

    root: Path

    @property
    def plan(self) -> Path:
        """What is searched for."""
        return self.root / "plan.json"

    @property
    def config(self) -> Path:
        """The resolved configuration of a trial, but for its rate and seed."""
        return self.root / "config.toml"

    @property
    def range_test(self) -> Path:
        """Stage one."""
        return self.root / "range.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.root / "lock"

    def trial(self, lr: float, seed: int) -> Path:
        """One trial of stage two."""
        return self.root / f"trial-{lr!r}-{seed}.json"

    def read_plan(self) -> SearchPlan:
        """Raises RunError where it is missing or malformed."""
        plan: SearchPlan | None = _read(self.plan, SearchPlan)
        if plan is None:
            raise RunError(f"{self.plan} cannot be read", "remove the directory and search anew")
        return plan

    def read_config(self) -> RunConfig:
        """Raises ConfigError."""
        return build(parse_toml(read_config_file(self.config), str(self.config)), str(self.config))

    def read_range_test(self) -> RangeTest | None:
        """None where there is none yet, or it is damaged."""
        test: RangeTest | None = _read(self.range_test, RangeTest)
        return test if test is not None and test.lrs and len(test.lrs) == len(test.losses) else None

    def read_trials(self) -> list[Trial]:
        """Every finished trial; a damaged file, or one under another's name, is a trial that is still to do."""
        found = [(path, _read(path, Trial)) for path in sorted(self.root.glob("trial-*.json"))]
        return [trial for path, trial in found if trial is not None and path == self.trial(trial.lr, trial.seed)]

    def write(self, path: Path, value: Any) -> None:
        """Store a result, durably. Raises RunError."""
        try:
            atomic_write_json(path, value)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}", "check the disk") from None


def default_directory(plan: SearchPlan, config: RunConfig) -> Path:
    """Where a search is kept unless a person says so: the same request finds the same place, and goes on there."""
    digest = hashlib.sha256(msgspec.json.encode(plan) + dump_toml(config)).hexdigest()[:8]
    name = f"lr-{plan.preset}-{digest}"
    return platformdirs.user_data_path("gpuworkbench", appauthor=False) / "bench" / name


def open_search(root: Path, plan: SearchPlan, config: RunConfig) -> SearchFiles:
    """Make the directory of a search, or find it as it was left.

    Raises UsageError where `root` holds another search or something else, RunError where it cannot be written.
    """
    files = SearchFiles(root)
    try:
        make_directories(root)
        if files.plan.exists():
            _require_same(files, plan, config)
            return files
        if any(root.iterdir()):
            raise UsageError(f"{root} holds files, and no search", "give an empty or a new --out")
        atomic_write_bytes(files.config, dump_toml(config))
        atomic_write_json(files.plan, plan)  # last: with it the directory is a search
    except OSError as error:
        raise RunError(
            f"{root} cannot be written: {error.strerror or error}", "choose another place with --out"
        ) from None
    return files


def _require_same(files: SearchFiles, plan: SearchPlan, config: RunConfig) -> None:
    hint = "give another --out, or none"
    changed = [str(difference) for difference in differences(files.read_config(), config)]
    if changed:
        raise UsageError(f"{files.root} holds a search of another configuration: {'; '.join(changed[:3])}", hint)
    before, after = msgspec.to_builtins(files.read_plan()), msgspec.to_builtins(plan)
    odd = [f"{key}: {before[key]!r} -> {after[key]!r}" for key in after if before.get(key) != after[key]]
    if odd:
        raise UsageError(f"{files.root} holds another search: {'; '.join(odd[:3])}", hint)


def _read(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(read_regular_file(path, MAX_FILE_BYTES), type=kind)
    except (OSError, ValueError, RecursionError):
        return None
