"""Copies of tensors in a file that has no name: read back through a mapping, gone with the last tensor.

The file is unlinked while it is still empty, so that whatever ends the process, SIGKILL too, gives its space back:
what a kill between the two calls leaves is a name of no bytes. It is written with write(2), not through the mapping:
a full disk is then an OSError, not a SIGBUS at some later store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpuworkbench.io.atomic import temporary_path
from gpuworkbench.io.files import REAL_FILES, Files, write_all
from gpuworkbench.memory.host_arena import aligned


class DiskCopies:
    """Makes such files beside `path`, under a temporary name that the run's next trainer would remove."""

    def __init__(self, path: Path, files: Files = REAL_FILES) -> None:
        self.path = path
        self.files = files

    def copy(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors' values now, on the host, as long as they are held; not to be written to. Raises OSError.

        `live` may be lazy: each tensor is asked for once.
        """
        if not live:
            return {}
        places, memory = self._written(live)
        copies, start = {}, 0
        for place in places:
            copies[place.name] = memory[start : start + place.num_bytes].view(place.dtype).view(place.shape)
            start += aligned(place.num_bytes)
        return copies

    def _written(self, live: Mapping[str, Tensor]) -> tuple[list[_Place], Tensor]:
        """Where each tensor lies in the file, and the file's bytes."""
        fd = self.files.open_write(temporary := temporary_path(self.path))
        try:
            with ExitStack() as stack:
                try:
                    file = stack.enter_context(temporary.open("rb+"))  # to read from; `fd` only writes
                finally:
                    self.files.unlink(temporary)
                places = [self._write(fd, name, tensor) for name, tensor in live.items()]
                num_bytes = sum(aligned(place.num_bytes) for place in places)
                # numpy's mapping: torch would count the file among its tensors' bytes
                memory = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(num_bytes,)))
        except BaseException:
            os.close(fd)
            raise
        self.files.close(fd)
        return places, memory

    def _write(self, fd: int, name: str, tensor: Tensor) -> _Place:
        data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        write_all(self.files, fd, data.numpy().data)
        write_all(self.files, fd, bytes(aligned(data.numel()) - data.numel()))
        return _Place(name, tensor.dtype, tensor.shape, data.numel())


class _Place(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: torch.Size
    num_bytes: int
