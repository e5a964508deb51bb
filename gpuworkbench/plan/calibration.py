"""What finished runs took against what was predicted, kept on this machine, and what later plans learn from it.

One line a run in the user's state directory. Only runs on the same device count (the card by its name, whether it was
a simulated smaller one; the CPU), and of those the ones that store weights and state the same way, where there are any.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
import platformdirs
from msgspec import Struct

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.config.storage import storage_of
from gpuworkbench.io.reading import read_regular_file

VERSION = 2  # 1: predicted by formulas that left out copies for checkpoints, and undo copies in true steps
MAX_LINES = 500
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_LINE_BYTES = 4096
USED_RUNS = 20  # the newest that count
FACTOR_LIMITS = (0.7, 1.5)  # beyond, something else than the formulas was wrong
MAX_BYTES = 2**50  # no device has more
SANE_FLOPS = (1e6, 1e17)  # a second: below and above what any device does
MIN_READINGS = 3  # of its rate; a run that ended sooner says nothing


class Record(Struct, frozen=True, kw_only=True):
    """One finished run. Bytes as the allocator counts them on a card, the process's where there is none."""

    v: int = VERSION
    time_unix_s: float
    kind: Literal["cuda", "cpu"]
    device: str  # the card's name, or the CPU's
    simulated: bool = False
    preset: str
    storage: str
    n_params: int
    predicted_bytes: int
    measured_bytes: int
    flops_per_s: float | None = None  # of the model, without recompute
    torch: str = ""


class Calibration(Struct, frozen=True, kw_only=True):
    """`factor` is measured over predicted (the median of `n_runs`), and the range of FLOPs a second they reached."""

    factor: float
    n_runs: int
    is_same_storage: bool
    flops_per_s: tuple[float, float] | None = None

    def apply(self, num_bytes: int) -> int:
        """A predicted number of bytes, corrected."""
        return round(num_bytes * self.factor)


def calibration_path() -> Path:
    """Where the records are kept."""
    return Path(platformdirs.user_state_dir("gpuworkbench")) / "calibration.jsonl"


def add_record(record: Record, path: Path | None = None) -> None:
    """Append a record, in one write. A file that has grown long is cut to its newest lines. Raises OSError."""
    path = path or calibration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(record) + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
    lines = _lines(path)
    if len(lines) > 2 * MAX_LINES:
        from gpuworkbench.io import atomic_write_bytes

        atomic_write_bytes(path, b"".join(each + b"\n" for each in lines[-MAX_LINES:]))


def read_records(path: Path | None = None) -> list[Record]:
    """Every record that can be read, the oldest first; none where there is no file."""
    found = []
    for line in _lines(path or calibration_path())[-MAX_LINES:]:
        with contextlib.suppress(ValueError, RecursionError):
            record = msgspec.json.decode(line, type=Record)
            if record.v == VERSION and _can_be(record):
                found.append(record)
    return found


def _can_be(record: Record) -> bool:
    """Whether a run may have said this."""
    has_rate = record.flops_per_s is None or SANE_FLOPS[0] <= record.flops_per_s <= SANE_FLOPS[1]
    return has_rate and all(0 < each <= MAX_BYTES for each in (record.predicted_bytes, record.measured_bytes))


def calibrate(
    config: RunConfig, kind: str, device: str | None, records: Iterable[Record], *, simulated: bool = False
) -> Calibration | None:
    """What the records say about runs like `config` on this device; None where they say nothing."""
    mine = [each for each in records if (each.kind, each.device, each.simulated) == (kind, device, simulated)]
    same = [each for each in mine if each.storage == storage_of(config.memory)]
    used = (same or mine)[-USED_RUNS:]
    if not used:
        return None
    ratio = statistics.median(each.measured_bytes / each.predicted_bytes for each in used)
    rates = [each.flops_per_s for each in used if each.flops_per_s]
    return Calibration(
        factor=round(min(max(ratio, FACTOR_LIMITS[0]), FACTOR_LIMITS[1]), 4),
        n_runs=len(used),
        is_same_storage=bool(same),
        flops_per_s=(min(rates), max(rates)) if rates else None,
    )


def _lines(path: Path) -> list[bytes]:
    try:
        return [each for each in read_regular_file(path, MAX_FILE_BYTES).splitlines() if len(each) <= MAX_LINE_BYTES]
    except OSError:
        return []
