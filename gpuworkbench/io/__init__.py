"""The one file layer: everything that must survive a crash is written through here."""

from gpuworkbench.io.atomic import (
    append_line,
    atomic_write_bytes,
    atomic_write_json,
    commit_directory,
    discard_directory,
    discard_leftovers,
    make_directories,
    sha256_of_file,
    write_durable,
)
from gpuworkbench.io.files import REAL_FILES, Files
from gpuworkbench.io.reading import read_from, read_regular_file, read_tail

__all__ = [
    "REAL_FILES",
    "Files",
    "append_line",
    "atomic_write_bytes",
    "atomic_write_json",
    "commit_directory",
    "discard_directory",
    "discard_leftovers",
    "make_directories",
    "read_from",
    "read_regular_file",
    "read_tail",
    "sha256_of_file",
    "write_durable",
]
