"""Deleting a run that a person is done with: it leaves the list of runs whole, by one rename, or it stays whole."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gpuworkbench.errors import RunError, RunLockedError
from gpuworkbench.io import REAL_FILES, Files, discard_directory
from gpuworkbench.runs.lock import RunLock
from gpuworkbench.runs.paths import RunPaths
from gpuworkbench.runs.status import derive_status

DELETED_PREFIX = ".deleted-"  # hidden from lists; whatever carries it is rubbish, whoever left it


def delete_run(paths: RunPaths, files: Files = REAL_FILES) -> None:
    """Delete a run and everything in it.

    Raises RunLockedError while a trainer lives or starts, RunError where the directory cannot be moved away; the run
    is then as it was. What a kill leaves half removed is hidden, and goes with the next deletion.
    """
    status = derive_status(paths).status
    if status.is_live:
        raise RunLockedError(f"{paths.run_id} is {status.value}", "stop it first, then delete it")
    lock = RunLock(paths.lock)
    lock.acquire()  # from here on no trainer can start in it
    hidden = paths.root.with_name(f"{DELETED_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
    try:
        files.rename(paths.root, hidden)
        files.fsync_directory(hidden.parent)
    except OSError as error:
        if not paths.root.exists():  # only the fsync failed: it is gone for everybody but a power cut
            return
        raise RunError(
            f"{paths.run_id} cannot be deleted: {error.strerror or error}", f"check who may write {paths.root.parent}"
        ) from None
    finally:
        lock.release()
    sweep(hidden.parent, files)


def sweep(runs_dir: Path, files: Files = REAL_FILES) -> None:
    """Remove what deletions left; what cannot be removed stays hidden."""
    try:
        names = [name for name in os.listdir(runs_dir) if name.startswith(DELETED_PREFIX)]
    except OSError:
        return
    for name in names:
        discard_directory(runs_dir / name, files)
