"""The one file layer: everything that must survive a crash is written through here."""

from gpuworkbench.io.atomic import (
    append_line,
    atomic_write_bytes,
    atomic_write_json,
    commit_directory,
    sha256_of_file,
)
from gpuworkbench.io.files import REAL_FILES, Files

__all__ = [
    "REAL_FILES",
    "Files",
    "append_line",
    "atomic_write_bytes",
    "atomic_write_json",
    "commit_directory",
    "sha256_of_file",
]
