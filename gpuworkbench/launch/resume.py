"""Going on with a saved run: what may change, and the run file of the attempt that follows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gpuworkbench.config.diff import Difference, differences
from gpuworkbench.config.loader import Override, build, build_overridden, environment_overrides
from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.toml_io import dump_toml, parse_toml, read_config_file
from gpuworkbench.data import load_same_tokens, prepare
from gpuworkbench.errors import ConfigError, RunLockedError
from gpuworkbench.launch.queue import device_of_config, refuse_busy
from gpuworkbench.launch.resolve import resolve_steps
from gpuworkbench.launch.stored_fix import stored_fix
from gpuworkbench.runs.create import newest_run_file, write_attempt_file
from gpuworkbench.runs.heartbeat import living_pid
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.manifest import list_checkpoints
from gpuworkbench.runs.paths import RunPaths


class Resumption(NamedTuple):
    """A run that may go on: `changed` keys, the run file to train with, and whether it was written for this attempt."""

    paths: RunPaths
    changed: tuple[Difference, ...]
    run_file: Path
    is_new_file: bool


def run_config(paths: RunPaths) -> RunConfig:
    """The newest resolved config of a run. Raises ConfigError, RunError."""
    return _read(newest_run_file(paths))


def resume(
    paths: RunPaths,
    *,
    sets: Iterable[Override] = (),
    steps: int | None = None,
    queue: bool = False,
    apply_fix: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Resumption:
    """Check that a run may go on with these changes, and write its new run file where keys changed.

    With `queue` its card may be in use: the trainer waits for it. With `apply_fix` the change that its last attempt,
    out of memory, left in the log is made too; of the keys that make another run only these may differ.
    Raises RunLockedError, DeviceBusyError, ConfigError (a semantic key changed; naming `--fork`), DataError, RunError.
    """
    refuse_locked(paths)
    newest = newest_run_file(paths)
    old = _read(newest)
    fix = stored_fix(paths) if apply_fix else ()
    new = changed_config(old, (*fix, *sets), steps, environ, paths.tokenizer)
    changed = tuple(differences(old, new))
    fixed = {(override.key, override.value) for override in fix}
    semantic = [item for item in changed if item.is_semantic and (item.key, item.new) not in fixed]
    if semantic:
        raise ConfigError(
            f"{paths.root.name}: {'; '.join(map(str, semantic))} would make it another run",
            "add --fork to train on as a new run, or leave it as it was",
        )
    refuse_past_end(paths, new)
    if not queue:
        refuse_busy(device_of_config(new), can_share=False)
    load_same_tokens(new, paths.tokenizer)
    if not changed:
        return Resumption(paths, (), newest, is_new_file=False)
    return Resumption(paths, changed, write_attempt_file(paths, dump_toml(new)), is_new_file=True)


def changed_config(
    old: RunConfig,
    sets: Iterable[Override],
    steps: int | None,
    environ: Mapping[str, str],
    kept_tokenizer: Path | None = None,
) -> RunConfig:
    """`old` with environment and command-line overrides; `kept_tokenizer` as for `prepare`.

    Raises ConfigError; DataError where epochs become steps.
    """
    overrides = [*environment_overrides(environ), *sets]
    if steps is not None:
        overrides.append(Override("train.max_steps", steps, "--steps"))
    if not overrides:
        return old
    new = build_overridden(as_table(old), overrides, "the run", "run.toml")
    keys = {override.key for override in overrides}
    if "train.max_epochs" in keys and "train.max_steps" not in keys:
        new = _with_steps_of_epochs(new, kept_tokenizer)
    return new


def as_table(config: RunConfig) -> dict[str, Any]:
    """A config as its file would be read: without the keys that are None."""
    return parse_toml(dump_toml(config), "run.toml")


def refuse_locked(paths: RunPaths) -> None:
    """RunLockedError when a trainer holds the run."""
    pid = probe_lock(paths.lock)
    if pid is not None:
        raise locked_by(paths, pid)
    living = living_pid(paths.heartbeat)
    if living is not None:
        raise RunLockedError(
            f"{paths.root.name}: its lock file was removed, and process {living} still trains it",
            f"end that process first: kill {living}",
        )


def locked_by(paths: RunPaths, pid: int | None) -> RunLockedError:
    """The refusal, naming the process where it can be named (not one of another container)."""
    holder = f"process {pid}" if pid else "another process"
    return RunLockedError(
        f"{paths.root.name} is being trained by {holder}",
        f"`gpuworkbench attach {paths.root.name}` shows it, `gpuworkbench stop {paths.root.name}` ends it",
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


def _read(path: Path) -> RunConfig:
    return build(parse_toml(read_config_file(path), str(path)), str(path))


def _with_steps_of_epochs(config: RunConfig, kept_tokenizer: Path | None) -> RunConfig:
    """`train.max_steps` anew from `train.max_epochs`: the stored one was resolved from what was configured before."""
    n_train_tokens = prepare(config, kept_tokenizer=kept_tokenizer).n_train_tokens
    replace = msgspec.structs.replace
    steps = resolve_steps(replace(config, train=replace(config.train, max_steps=None)), n_train_tokens)
    return replace(config, train=replace(config.train, max_steps=steps))
