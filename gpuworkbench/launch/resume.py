"""Going on with a saved run, or forking another from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.config.diff import Difference, differences
from gpuworkbench.config.loader import Override, apply_overrides, build, environment_overrides
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml, read_regular_file
from gpuworkbench.data import prepare
from gpuworkbench.errors import CheckpointError, ConfigError, RunLockedError
from gpuworkbench.io.atomic import atomic_write_bytes
from gpuworkbench.runs.create import create_run, newest_run_file, next_attempt_file
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import CheckpointRef, list_checkpoints, verify_checkpoint
from gpuworkbench.runs.paths import RunPaths, new_run_id, validate_run_id


class Resumption(NamedTuple):
    """A run that may go on: `changed` keys, and the run file written for this attempt where there are any."""

    paths: RunPaths
    changed: tuple[Difference, ...]
    run_file: Path | None


def run_config(paths: RunPaths) -> RunConfig:
    """The newest resolved config of a run. Raises ConfigError, RunError."""
    path = newest_run_file(paths)
    return build(parse_toml(read_regular_file(path), str(path)), str(path))


def resume(
    paths: RunPaths,
    *,
    sets: Iterable[Override] = (),
    steps: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Resumption:
    """Check that a run may go on with these changes, and write its new run file where keys changed.

    Raises RunLockedError, ConfigError (a semantic key changed; naming `--fork`), RunError.
    """
    refuse_locked(paths)
    old = run_config(paths)
    new = changed_config(old, sets, steps, environ)
    changed = tuple(differences(old, new))
    semantic = [difference for difference in changed if difference.is_semantic]
    if semantic:
        raise ConfigError(
            f"{paths.root.name}: {'; '.join(map(str, semantic))} would make it another run",
            "add --fork to train on as a new run, or leave it as it was",
        )
    refuse_past_end(paths, new)
    run_file = None
    if changed:
        run_file = next_attempt_file(paths)
        atomic_write_bytes(run_file, dump_toml(new))
    return Resumption(paths, changed, run_file)


def fork(
    paths: RunPaths,
    runs_dir: Path,
    *,
    sets: Iterable[Override] = (),
    steps: int | None = None,
    run_id: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunPaths:
    """A new run that starts from the newest intact checkpoint of `paths`, with changed keys.

    The parent is only read. Raises ConfigError, RunError, CheckpointError.
    """
    if run_id is not None:
        validate_run_id(run_id)
    old = run_config(paths)
    reference = newest_intact_checkpoint(paths)
    new = changed_config(old, sets, steps, environ)
    if any(difference.key.startswith("model.") for difference in differences(old, new)):
        raise ConfigError("a fork keeps the model of its checkpoint", "start a new run to change [model]")
    data = prepare(msgspec.structs.replace(new, data=msgspec.structs.replace(new.data, sha256=None)))
    new = msgspec.structs.replace(
        new,
        data=msgspec.structs.replace(new.data, sha256=data.sha256),
        forked_from=f"{paths.root.name}@{reference.step}",
    )
    refuse_past_end(paths, new)
    child_id = run_id or new_run_id(old.preset)
    child = create_run(runs_dir, child_id, read_regular_file(paths.preset_toml), dump_toml(new))
    target = child.checkpoint(reference.step)
    shutil.copytree(reference.path, target.with_name(f".tmp-{target.name}"))
    os.rename(target.with_name(f".tmp-{target.name}"), target)
    return child


def newest_intact_checkpoint(paths: RunPaths) -> CheckpointRef:
    """The newest checkpoint whose manifest holds. Raises CheckpointError when there is none."""
    problem = "it has none yet"
    for reference in list_checkpoints(paths):
        try:
            verify_checkpoint(reference.path)
        except CheckpointError as error:
            problem = error.line()
            continue
        return reference
    raise CheckpointError(f"{paths.root.name}: no intact checkpoint: {problem}", "train it further first")


def changed_config(
    old: RunConfig, sets: Iterable[Override], steps: int | None, environ: Mapping[str, str]
) -> RunConfig:
    """`old` with environment and command-line overrides. Raises ConfigError."""
    overrides = [*environment_overrides(environ), *sets]
    if steps is not None:
        overrides.append(Override("train.max_steps", steps, "--steps"))
    if not overrides:
        return old
    named = ", ".join(dict.fromkeys(f"{override.where} {override.key}" for override in overrides))
    return build(apply_overrides(as_table(old), overrides), f"the run with {named}")


def as_table(config: RunConfig) -> dict[str, Any]:
    """A config as its file would be read: without the keys that are None."""
    return parse_toml(dump_toml(config), "run.toml")


def refuse_locked(paths: RunPaths) -> None:
    """RunLockedError when a trainer holds the run."""
    pid = probe_lock(paths.lock)
    if pid is not None:
        raise RunLockedError(
            f"{paths.root.name} is being trained by process {pid}",
            f"`gpuworkbench attach {paths.root.name}` shows it, `gpuworkbench stop` ends it",
        )


def refuse_past_end(paths: RunPaths, config: RunConfig) -> None:
    """ConfigError when the run is already further than its new end."""
    references = list_checkpoints(paths)
    limit = config.train.max_steps
    if references and limit is not None and references[0].step > limit:
        raise ConfigError(
            f"--steps {limit}: {paths.root.name} is already at step {references[0].step}",
            "--steps is the run's total; give a larger one",
        )
