"""label.json: what a person calls a run, what they noted, and its place in the queue."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from gpuworkbench.errors import RunError
from gpuworkbench.io import REAL_FILES, Files, atomic_write_json
from gpuworkbench.io.reading import read_regular_file
from gpuworkbench.runs.paths import RunPaths

MAX_LABEL_BYTES = 256 * 1024


class Label(Struct, frozen=True, kw_only=True):
    """Text is as a person typed it: show it through `safe_text`.

    `queue_position` orders the runs that wait for one device, lowest first; it says nothing once a run trains. None:
    never queued.
    """

    name: str = ""
    notes: str = ""
    queue_position: int | None = None


def read_label(paths: RunPaths) -> Label:
    """The run's label; an empty one where it is missing or malformed."""
    try:
        return msgspec.json.decode(read_regular_file(paths.label, MAX_LABEL_BYTES), type=Label)
    except (OSError, ValueError, RecursionError):
        return Label()


def write_label(paths: RunPaths, label: Label, files: Files = REAL_FILES) -> None:
    """Replace the label. Raises RunError where it is too long or cannot be written."""
    try:
        if len(msgspec.json.encode(label)) > MAX_LABEL_BYTES // 2:
            raise RunError(f"the notes of run {paths.run_id} are too long", "shorten them")
        atomic_write_json(paths.label, label, files)
    except UnicodeEncodeError:
        raise RunError(f"the label of run {paths.run_id} is not valid text", "use other characters") from None
    except OSError as error:
        raise RunError(f"{paths.label} cannot be written: {error.strerror or error}", "check the disk") from None
