"""The runs of a runs directory: listing them, and finding one by id, prefix or path.

The directory may hold anything: foreign files, symlinks, half-copied or hostile directories. A run is a real
directory that holds a regular run.toml; everything else is passed over.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from gpuworkbench.config.toml_io import parse_toml, read_config_file
from gpuworkbench.errors import ConfigError, RunError
from gpuworkbench.registry import nearest
from gpuworkbench.runs.label import read_label
from gpuworkbench.runs.paths import RunPaths, created_unix_s
from gpuworkbench.runs.status import RunStatus, derive_status, read_config
from gpuworkbench.text import safe_text
from gpuworkbench.units import simulated_card_name

MAX_LISTED_RUNS = 10_000
MAX_NOTES_CHARS = 2_000  # in a list; label.json has them all
_FORK_MARK = re.compile(rb"""forked_from["']?\s*=\s*(?!""\s)""")


class RunInfo(Struct, frozen=True, kw_only=True):
    """One line of `runs`. Texts from files are safe to print; `run_id` and `path` are as they are on the disk."""

    run_id: str
    path: str
    preset: str
    status: RunStatus
    step: int | None
    max_steps: int | None
    last_loss: float | None
    attempt: int | None = None
    reason: str = ""
    name: str = ""
    is_cpu_twin: bool = False
    simulated_card: str | None = None
    created_unix_s: float | None = None
    last_event_unix_s: float | None = None
    last_checkpoint_step: int | None = None
    forked_from: str = ""
    notes: str = ""


def list_runs(runs_dir: Path, now: float | None = None) -> list[RunInfo]:
    """Every run of a directory, newest first; a missing directory has none. Never raises OSError."""
    roots = sorted(((_created(path), path.name, path) for path in run_roots(runs_dir)), reverse=True)
    return [run_info(RunPaths(path), now, created) for created, _, path in roots[:MAX_LISTED_RUNS]]


def run_info(paths: RunPaths, now: float | None = None, created: float | None = None) -> RunInfo:
    """One run's line."""
    config = read_config(paths)
    report = derive_status(paths, now)
    label = read_label(paths)
    return RunInfo(
        run_id=paths.run_id,
        path=str(paths.root),
        preset=_text(config.get("preset")),
        status=report.status,
        step=report.step,
        max_steps=report.max_steps,
        last_loss=report.last_loss,
        attempt=report.attempt,
        reason=report.reason,
        name=safe_text(label.name, max_chars=200),
        notes=safe_text(label.notes, multiline=True, max_chars=MAX_NOTES_CHARS),
        is_cpu_twin=config.get("is_cpu_twin") is True,
        simulated_card=simulated_card(config),
        created_unix_s=_created(paths.root) if created is None else created,
        last_event_unix_s=report.last_event_unix_s,
        last_checkpoint_step=report.last_checkpoint_step,
        forked_from=_text(config.get("forked_from")),
    )


def simulated_card(config: Mapping[str, Any]) -> str | None:
    """What `RunConfig.simulated_card` says, from a run file that may hold anything."""
    device = config.get("device")
    limit_gib = device.get("memory_limit_gib") if isinstance(device, Mapping) else None
    if not isinstance(limit_gib, int | float) or isinstance(limit_gib, bool) or not 0 < limit_gib <= 1e6:
        return None
    return None if config.get("is_cpu_twin") is True else simulated_card_name(limit_gib)


def forked_from(paths: RunPaths) -> str:
    """`RUN@STEP` that a run was forked from, "" where it was not. Never raises OSError."""
    try:
        data = read_config_file(paths.run_toml)
        if not _FORK_MARK.search(data):  # most runs: no need to parse
            return ""
        return _text(parse_toml(data, str(paths.run_toml)).get("forked_from"))
    except ConfigError:
        return ""


def forks(runs_dir: Path) -> dict[str, str]:
    """Every run of a directory with what it was forked from."""
    return {root.name: forked_from(RunPaths(root)) for root in run_roots(runs_dir)[:MAX_LISTED_RUNS]}


def resolve_run(runs_dir: Path, text: str) -> RunPaths:
    """The run that `text` names: an id, a unique prefix of one, or a path to a run directory.

    Raises RunError with one line where there is none, several, or something else at that place.
    """
    shown = safe_text(text, max_chars=120)
    if not text.strip() or "\0" in text:
        raise RunError(f"{shown!r} does not name a run", "give a run id, a unique prefix of one, or a path")
    if "/" in text or text in (".", "..") or text.startswith("~"):
        return _by_path(Path(text), shown)
    ids = [path.name for path in run_roots(runs_dir)]
    if text in ids:
        return RunPaths(runs_dir / text)
    matches = sorted((run_id for run_id in ids if run_id.startswith(text)), reverse=True)
    if len(matches) == 1:
        return RunPaths(runs_dir / matches[0])
    if matches:
        few = ", ".join(matches[:3]) + (", ..." if len(matches) > 3 else "")
        raise RunError(f"{shown!r} could be any of {len(matches)} runs ({few})", "give more of the id")
    close = nearest(text, ids)
    hint = f"did you mean {close}?" if close else "`gpuworkbench runs` lists them"
    raise RunError(f"there is no run {shown!r} in {runs_dir}", hint)


def is_run(root: Path) -> bool:
    """A real directory that holds a regular run.toml."""
    try:
        return stat.S_ISDIR(os.lstat(root).st_mode) and stat.S_ISREG(os.lstat(root / "run.toml").st_mode)
    except (OSError, ValueError):
        return False


def _by_path(path: Path, shown: str) -> RunPaths:
    try:
        root = path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        raise RunError(f"the path {shown!r} cannot be followed", "give the path of a run directory") from None
    if not is_run(root):
        raise RunError(f"{shown!r} is not a run directory", "a run directory holds run.toml")
    return RunPaths(root)


def run_roots(runs_dir: Path) -> list[Path]:
    """The directories of all runs, in no order; a missing directory has none. Never raises OSError."""
    try:
        with os.scandir(runs_dir) as scan:
            names = [entry.name for entry in scan if not entry.name.startswith(".")]
    except (OSError, ValueError):
        return []
    return [root for name in names if is_run(root := runs_dir / name)]


def _created(root: Path) -> float:
    """From the id, else from run.toml, which is never rewritten."""
    stamp = created_unix_s(root.name)
    if stamp is not None:
        return stamp
    try:
        return os.lstat(root / "run.toml").st_mtime
    except OSError:
        return 0.0


def _text(value: Any) -> str:
    return safe_text(value, max_chars=200) if isinstance(value, str) else ""
