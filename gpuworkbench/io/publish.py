"""Directories that are handed to other programs: complete under their name, or without the file that makes them so.

Where the directory is new, it appears by one rename. Where it is there already (an empty one, a mount point, an earlier
export) the new files replace the old ones one by one, and the `key_file`, without which no program takes the directory
for complete, goes first and comes last.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from gpuworkbench.io.atomic import TEMPORARY_PREFIX, commit_directory, discard_directory, make_directories
from gpuworkbench.io.files import REAL_FILES, Files

_LEFTOVER = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(\d+)-(.+)")


class Publication:
    """A directory in the making. `temporary` is filled by the caller, then `commit` or `discard` is called."""

    def __init__(self, final: Path, files: Files = REAL_FILES) -> None:
        """Make the temporary directory, and missing parents. Raises OSError; then nothing is left behind."""
        self.final = final
        self._files = files
        self._is_new = not final.is_dir()
        self._made_parents = _missing_parents(final) if self._is_new else []
        home = final.parent if self._is_new else final
        self.temporary = home / f"{TEMPORARY_PREFIX}{os.getpid()}-{final.name}"
        try:
            make_directories(home, files)
            _discard_leftovers(home, final.name, files)
            files.mkdir(self.temporary)
        except BaseException:
            self.discard()
            raise

    def commit(self, key_file: str, is_replaced: Callable[[str], bool]) -> None:
        """Give the files their place, durably. `is_replaced(name)`: whether an old file of that name must go.

        Raises OSError; call `discard` then.
        """
        if self._is_new:
            commit_directory(self.temporary, self.final, self._files)
            return
        new = sorted(os.listdir(self.temporary), key=lambda name: name == key_file)
        old = [name for name in os.listdir(self.final) if is_replaced(name) and name not in new and name != key_file]
        if os.path.lexists(self.final / key_file):
            self._files.unlink(self.final / key_file)
            self._files.fsync_directory(self.final)
        for name in old:
            self._files.unlink(self.final / name)
        for name in new:
            if name == key_file:
                self._files.fsync_directory(self.final)
            self._files.rename(self.temporary / name, self.final / name)
        self._files.fsync_directory(self.final)
        discard_directory(self.temporary, self._files)

    def discard(self) -> None:
        """Remove what was not committed, and the parents that were made for it."""
        if os.path.lexists(self.temporary):
            discard_directory(self.temporary, self._files)
        for parent in self._made_parents:
            try:
                self._files.rmdir(parent)
            except OSError:
                return  # somebody else uses it by now


def visible_names(directory: Path) -> list[str]:
    """What lies in a directory, without what killed writers left. Raises OSError."""
    return sorted(name for name in os.listdir(directory) if not _LEFTOVER.fullmatch(name))


def irregular(directory: Path, names: list[str]) -> list[str]:
    """Those of `names` that something other than a regular file has in `directory`."""
    return [name for name in names if _is_irregular(directory / name)]


def _is_irregular(path: Path) -> bool:
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _missing_parents(path: Path) -> list[Path]:
    """The parents that `path` needs and that are not there, the deepest first."""
    return [parent for parent in path.parents if not os.path.lexists(parent)]


def _discard_leftovers(home: Path, name: str, files: Files) -> None:
    """Remove the temporary directories that killed processes left here for the same directory."""
    for entry in os.listdir(home):
        match = _LEFTOVER.fullmatch(entry)
        if match and match[2] == name and not _is_another(int(match[1])):
            discard_directory(home / entry, files)


def _is_another(pid: int) -> bool:
    """Whether another living process has that id; ours may have been a killed one's before, in a container."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
