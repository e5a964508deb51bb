"""Creation of run directories: whole or not at all, since others list the directory while it is made."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from gpuworkbench.errors import RunError
from gpuworkbench.io import REAL_FILES, Files, commit_directory, make_directories
from gpuworkbench.io.atomic import TEMPORARY_PREFIX, discard_directory, write_durable
from gpuworkbench.runs.lock import probe_lock
from gpuworkbench.runs.paths import ATTEMPT_FILE_NAME, RunPaths, validate_run_id
from gpuworkbench.runs.tail import last_attempt

# What file systems without hard links answer (FAT, some network ones).
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def create_run(
    runs_dir: Path,
    run_id: str,
    preset_text: bytes,
    run_toml: bytes,
    files: Files = REAL_FILES,
    *,
    fill: Callable[[RunPaths], object] = lambda paths: None,
) -> RunPaths:
    """Make `runs_dir/run_id` with its configuration and what `fill` puts into it, durably.

    It appears complete, by one rename, or not at all. Raises UsageError for an impossible id, RunError where the id
    is taken or the directory cannot be written, and what `fill` raises.
    """
    paths = RunPaths(runs_dir / validate_run_id(run_id))
    refuse_taken(paths)
    temporary = runs_dir / f"{TEMPORARY_PREFIX}{os.getpid()}-{run_id}-{secrets.token_hex(4)}"
    try:
        make_directories(runs_dir, files)
        inode = None
        try:
            _fill(RunPaths(temporary), preset_text, run_toml, files)
            fill(RunPaths(temporary))
            inode = os.stat(temporary).st_ino
            commit_directory(temporary, paths.root, files)
        except BaseException:
            discard_directory(temporary, files)
            if inode == _inode(paths.root):  # only the last fsync failed: the name may be gone with the power
                discard_directory(paths.root, files)
            raise
    except OSError as error:
        if os.path.lexists(paths.root):
            raise _already_exists(run_id) from None
        reason = error.strerror or str(error)
        raise RunError(
            f"the run directory {paths.root} cannot be made: {reason}", "choose another place with --runs-dir DIR"
        ) from None
    return paths


def refuse_taken(paths: RunPaths) -> None:
    """RunError where something of that name is there already."""
    if os.path.lexists(paths.root):
        raise _already_exists(paths.run_id)


def next_attempt_file(paths: RunPaths) -> Path:
    """The `run.<attempt>.toml` that a resume with changed keys writes; its number is above every earlier attempt's."""
    earlier = max([last_attempt(paths.events) or 1, *_attempt_files(paths)])
    return paths.attempt_toml(earlier + 1)


def write_attempt_file(paths: RunPaths, run_toml: bytes, files: Files = REAL_FILES) -> Path:
    """Store a changed configuration as `next_attempt_file`, durably; returns where.

    Several resumes may do so at once: each gets a file of its own, none replaces another's. Raises RunError.
    """
    temporary = paths.root / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}.toml"
    try:
        try:
            write_durable(temporary, run_toml, files)
            target = _link_as_next(paths, temporary, files)
        finally:
            with contextlib.suppress(OSError):
                files.unlink(temporary)
        files.fsync_directory(paths.root)
    except OSError as error:
        raise RunError(
            f"the changed configuration cannot be stored in {paths.root}: {error.strerror or error}", "check the disk"
        ) from None
    return target


def _link_as_next(paths: RunPaths, temporary: Path, files: Files) -> Path:
    while True:
        target = next_attempt_file(paths)
        try:
            files.link(temporary, target)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            files.rename(temporary, target)
        return target


def newest_run_file(paths: RunPaths) -> Path:
    """The configuration that holds now: the highest `run.<attempt>.toml`, else `run.toml`."""
    return run_files(paths)[-1]


def run_files(paths: RunPaths) -> list[Path]:
    """Every resolved configuration of the run, oldest first: `run.toml`, then each `run.<attempt>.toml`."""
    return [paths.run_toml, *(paths.attempt_toml(attempt) for attempt in sorted(_attempt_files(paths)))]


def discard_run(paths: RunPaths, files: Files = REAL_FILES) -> None:
    """Remove a run that was refused, so that nothing of it stays behind.

    It leaves the list of runs at once, by a rename. Raises RunError while a trainer holds its lock.
    """
    if probe_lock(paths.lock) is not None:
        raise RunError(f"run {paths.run_id} is being trained", f"stop it first: gpuworkbench stop {paths.run_id}")
    hidden = paths.root.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{paths.run_id}-{secrets.token_hex(4)}")
    try:
        files.rename(paths.root, hidden)
    except OSError:
        return
    discard_directory(hidden, files)


def _fill(paths: RunPaths, preset_text: bytes, run_toml: bytes, files: Files) -> None:
    files.mkdir(paths.root)
    for directory in (paths.checkpoints, paths.control, paths.samples):
        files.mkdir(directory)
    write_durable(paths.preset_toml, preset_text, files)
    write_durable(paths.run_toml, run_toml, files)


def _attempt_files(paths: RunPaths) -> list[int]:
    try:
        names = os.listdir(paths.root)
    except OSError:
        return []
    return [int(match[1]) for name in names if (match := ATTEMPT_FILE_NAME.fullmatch(name))]


def _inode(path: Path) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return -1


def _already_exists(run_id: str) -> RunError:
    return RunError(f"run {run_id} already exists", f"go on with --resume {run_id}, or choose another --run-id")
